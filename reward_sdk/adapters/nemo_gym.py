"""NeMo Gym: a resources server, and the `/verify` of the standalone reward server.

    # app.py; the configuration names the set: rewards: rewards.yaml
    from reward_sdk.adapters.nemo_gym import resources_server
    ReportServer = resources_server()
    if __name__ == "__main__":
        ReportServer.run_webserver()

Receives: the row and the response. Beside `responses_create_params` a row has `reference` (or
    `report`, `ground_truth`), `image` (a path), `view`, `id`, `age` and `indication`; without
    `image` the first `input_image` of the prompt counts, which must be a data URL, since none is
    fetched.
Returns: `reward`, the sum of `reward_components`, which are the weighted parts and `missing_parts`.
Logs: every key of the set's logs and `unscored`, as fields of the answer, which Gym aggregates.
On failure: the parts that are left, with `<name>/failed` 1. A sample without any score, also for
    want of a server or by `on_failure: raise`, has `unscored` 1, `_ng_failure_class`, which sends
    it to Gym's file of failures, and reward 0, because the shape has nothing else: verifiers' NeMo
    Gym client takes it for one, and records `unscored` as a metric. Where Gym's answers have the
    fields (0.7.0), `mask_sample` is true for such a sample, and `failure_kind`, `verifier_error`,
    and `failure_reason` say of any sample that a reward failed on it.
Not applicable: the parts that are left, with `<name>/not_applicable` 1, and 0 among the components.
    A sample to which no reward applies is unscored and masked, its `_ng_failure_class` is
    `reward_not_applicable`, and it has no `failure_kind`.
Does not: see the policy step, so every reward counts on every call.
Run for real: nemo-gym 0.4.0, with `recipes/nemo_gym/app.py` on its server, and its client; not
    `ng_run`; on Python 3.11, which its metadata excludes. Of 0.7.0 only the three fields' names
    and meaning, in its source.

`recipes/nemo_gym` is a resources server with its YAML and example rows. The standalone server
(`reward-sdk serve`) answers `/verify` and `/seed_session`, for clients that take a URL.
"""

# Without `from __future__ import annotations`: FastAPI reads those of `resources_server`'s class.

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from reward_sdk.adapters.rows import row_sample, url_image
from reward_sdk.adapters.scorer import MISSING, Scorer, values
from reward_sdk.errors import RewardSDKError, ScoringError
from reward_sdk.reward_set import UNSCORED
from reward_sdk.types import Sample, Score

logger = logging.getLogger(__name__)


class SeedRequest(BaseModel):
    """The body of `POST /seed_session`: a row. Nothing of it is kept."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"responses_create_params": {"input": "Describe."}}]},
    )


class VerifyRequest(BaseModel):
    """The body of `POST /verify`: a row, see `reward_sdk.adapters.rows`, and the response to it.
    All of it comes back.

    Attributes:
        responses_create_params: the prompt, as a request to OpenAI's Responses API holds it; by
            default none.
        response: the policy's answer, as OpenAI's Responses API gives it.
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


def sample(request: VerifyRequest, needs: Collection[str]) -> Sample:
    """The sample of a request.

    Raises:
        ScoringError: the response holds no message.
        ConfigError: the reference is no text, the age is none, or the image is of no known type.
    """
    row = {"images": _prompt_image(request), **(request.model_extra or {})}
    return row_sample(_text(request.response), row, needs)


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


def _prompt_image(request: VerifyRequest) -> bytes | str | None:
    """The first image of the prompt."""
    for message in _items(request.responses_create_params.get("input")):
        for item in _items(message.get("content")):
            if item.get("type") == "input_image":
                return url_image(str(item.get("image_url")))
    return None


def _items(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def reply(
    request: VerifyRequest,
    score: Score | None,
    weights: Mapping[str, float],
    log_keys: Sequence[str],
    problem: str = "",
    fields: Collection[str] = (),
) -> dict[str, Any]:
    """What NeMo Gym is told: the request, the reward, its components, and every log key.

    Args:
        request: the request, all of which comes back.
        score: the sample's score; None where it could not be scored at all.
        weights: reward name -> weight, for every reward of the set.
        log_keys: keys of the set's logs; each is 0 where there is no score.
        problem: why there is no score; "" where the reasons of its parts say so.
        fields: fields that an answer has in the version of NeMo Gym that asks; those of 0.7.0 that
            tell of failures are filled in if they are among them.
    """
    logs = dict.fromkeys(log_keys, 0.0) if score is None else score.logs
    parts = dict.fromkeys((*weights, MISSING)) if score is None else values(score, weights)
    components = {name: weights.get(name, 1.0) * (value or 0.0) for name, value in parts.items()}
    unscored = score is None or score.total is None
    found = [] if score is None else list(score.parts.values())
    failed = score is None or any(part.status == "failed" for part in found)
    told = ("failed", "not_applicable") if unscored else ("failed",)
    reasons = [part.reason for part in found if part.status in told]
    reason = problem or "; ".join(filter(None, reasons))
    failure: dict[str, Any] = {UNSCORED: float(unscored)}
    if unscored:
        failure["_ng_failure_class"] = "reward_failed" if failed else "reward_not_applicable"
        failure["_ng_failure_reason"] = reason
    newer = {
        "mask_sample": unscored,
        "failure_kind": "verifier_error" if failed else None,
        "failure_reason": reason or None,
    }
    failure |= {field: value for field, value in newer.items() if field in fields}
    reward = sum(components.values())
    echo = request.model_dump()
    return {**echo, **logs, "reward": reward, "reward_components": components, **failure}


def resources_server() -> type:
    """The class of a NeMo Gym resources server. Its configuration has one key of its own,
    `rewards`: a set, see `reward_sdk.config`, or the URLs of reward servers."""
    from nemo_gym.base_resources_server import (  # type: ignore[import-not-found]
        BaseResourcesServerConfig,
        BaseVerifyRequest,
        BaseVerifyResponse,
        SimpleResourcesServer,
    )

    class ReportConfig(BaseResourcesServerConfig):
        rewards: str | list[str] | dict[str, Any]

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
            score, problem, info = None, "", self._scorer.info
            try:
                score = await self._scorer.score_one(sample(request, info.needs))
            except RewardSDKError as error:
                problem = str(error)
                logger.warning("unscored: %s", problem)
            fields = BaseVerifyResponse.model_fields
            answer = reply(request, score, self._scorer.weights, info.log_keys, problem, fields)
            return ReportResponse.model_validate(answer)

    return ReportServer
