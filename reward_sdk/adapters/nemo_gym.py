"""NeMo Gym: a resources server, and the `/verify` of the standalone reward server.

    # app.py; the configuration names the set: rewards: rewards.yaml
    from reward_sdk.adapters.nemo_gym import resources_server
    ReportServer = resources_server()
    if __name__ == "__main__":
        ReportServer.run_webserver()

Receives: the row and the response. Beside `responses_create_params` a row has `reference` (or
    `report`, `ground_truth`), `image` (a path), `view` and `id`; without `image` the first
    `input_image` of the prompt counts, if it is a data URL.
Returns: `reward`, the sum of `reward_components`, which are the weighted parts and `missing_parts`.
Logs: every key of the set's logs, as fields of the answer, which Gym aggregates.
On failure: the parts that are left, with `<name>/failed` 1. A sample without any score has reward 0
    and `_ng_failure_class`, which keeps it out of Gym's results.
Does not: see the policy step, so every reward counts on every call.
Run for real: nemo-gym 0.4.0, its server class and its client; not `ng_run` and its environments.

`recipes/nemo_gym` is a resources server with its YAML and example rows.
"""

# Without `from __future__ import annotations`: FastAPI reads those of `resources_server`'s class.

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reward_sdk.adapters.columns import REFERENCE
from reward_sdk.adapters.scorer import MISSING, Scorer, own_sample, values
from reward_sdk.errors import RewardSDKError, ScoringError
from reward_sdk.types import Score
from reward_sdk.wire import ImageBytes, ImageFile, Text, WireSample, data_url_image, places

logger = logging.getLogger(__name__)


class SeedRequest(BaseModel):
    """The body of `POST /seed_session`: a row. Nothing of it is kept."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"responses_create_params": {"input": "Describe."}}]},
    )


class VerifyRequest(BaseModel):
    """The body of `POST /verify`; whatever else it holds comes back.

    Attributes:
        responses_create_params: the prompt, in the form of OpenAI's Responses API.
        response: what the policy answered, in the same form.
        reference: the radiologist's report.
        image: the X-ray's path.
        view: see `ImageRef`.
        id: the study's name.
    """

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "responses_create_params": {"input": "Describe."},
                    "response": {
                        "output": [
                            {
                                "type": "message",
                                "role": "assistant",
                                "content": [
                                    {
                                        "type": "output_text",
                                        "text": "<report> No effusion. </report>",
                                    }
                                ],
                            }
                        ]
                    },
                    "reference": "No pleural effusion.",
                    "id": "s1",
                }
            ]
        },
    )

    responses_create_params: dict[str, Any] = Field(default_factory=dict)
    response: dict[str, Any]
    reference: Text | None = None
    image: str | None = None
    view: str | None = None
    id: str = ""


def sample(request: VerifyRequest) -> WireSample:
    """The sample of a request; ScoringError if it holds none."""
    try:
        return WireSample(
            response=_text(request.response),
            reference=next(filter(None, (getattr(request, n, None) for n in REFERENCE)), None),
            image=ImageFile(path=request.image, view=request.view)
            if request.image
            else _prompt_image(request),
            id=request.id,
        )
    except ValidationError as error:
        raise ScoringError(f"verify: {places(error)}") from None


def _text(response: Mapping[str, Any]) -> str:
    """The text of the last message of a Responses object."""
    messages = [item for item in _items(response.get("output")) if item.get("type") == "message"]
    if not messages:
        raise ScoringError("response.output holds no message")
    content = messages[-1].get("content")
    if isinstance(content, str):
        return content
    texts = [item for item in _items(content) if item.get("type") == "output_text"]
    return "".join(str(item.get("text", "")) for item in texts)


def _prompt_image(request: VerifyRequest) -> ImageBytes | None:
    """The first image of the prompt, which must be a data URL: others are never fetched."""
    for message in _items(request.responses_create_params.get("input")):
        for item in _items(message.get("content")):
            if item.get("type") == "input_image":
                return data_url_image(str(item.get("image_url")), request.view)
    return None


def _items(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def reply(
    request: VerifyRequest,
    score: Score | None,
    weights: Mapping[str, float],
    log_keys: Sequence[str],
    problem: str = "",
) -> dict[str, Any]:
    """What NeMo Gym is told: the request, the reward, its components, and every log key.

    Args:
        request: what it sent.
        score: of the sample; None where it could not be scored at all.
        weights: of the set's rewards.
        log_keys: of the set.
        problem: why there is no score.
    """
    logs = dict.fromkeys(log_keys, 0.0) if score is None else score.logs
    parts = dict.fromkeys((*weights, MISSING)) if score is None else values(score, weights)
    components = {name: weights.get(name, 1.0) * (value or 0.0) for name, value in parts.items()}
    failure = {}
    if score is None or score.total is None:
        reasons = [] if score is None else [part.reason for part in score.parts.values()]
        reason = problem or "; ".join(filter(None, reasons))
        failure = {"_ng_failure_class": "reward_failed", "_ng_failure_reason": reason}
    reward = sum(components.values())
    echo = request.model_dump()
    return {**echo, **logs, "reward": reward, "reward_components": components, **failure}


def resources_server() -> type:
    """The class of a NeMo Gym resources server. Its configuration has one key of its own,
    `rewards`: the path of the set's YAML file, or the URLs of reward servers."""
    from nemo_gym.base_resources_server import (  # type: ignore[import-not-found]
        BaseResourcesServerConfig,
        BaseVerifyRequest,
        BaseVerifyResponse,
        SimpleResourcesServer,
    )

    class ReportConfig(BaseResourcesServerConfig):
        rewards: str

    class ReportRequest(BaseVerifyRequest):
        model_config = ConfigDict(extra="allow")

    class ReportResponse(BaseVerifyResponse):
        model_config = ConfigDict(extra="allow")

    class ReportServer(SimpleResourcesServer):
        config: ReportConfig

        def model_post_init(self, context: Any) -> None:
            super().model_post_init(context)
            self._scorer = Scorer(self.config.rewards)

        async def verify(self, body: ReportRequest) -> ReportResponse:
            request = VerifyRequest.model_validate(body.model_dump(mode="json"))
            score, problem = None, ""
            try:
                score = await self._scorer.score_one(own_sample(sample(request)))
            except RewardSDKError as error:
                problem = str(error)
                logger.warning("sample %r: %s", request.id, problem)
            info = self._scorer.info
            answer = reply(request, score, self._scorer.weights, info.log_keys, problem)
            return ReportResponse.model_validate(answer)

    return ReportServer
