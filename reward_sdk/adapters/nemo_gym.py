"""NeMo Gym's `/verify`: one rollout in, a reward and its components out.

A row of the dataset carries, beside `responses_create_params`, what the rewards need: `reference`
and `id`, `image` (a path) and `view`; an image in the prompt's own `input_image` counts where no
`image` is named. The policy step is not sent, so every reward counts on every call.

`reward` is the sum of `reward_components`, as NeMo RL demands. Where nothing could be scored it is
0 and `_ng_failure_class` says so, which keeps the row out of NeMo Gym's aggregates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reward_sdk.errors import ScoringError
from reward_sdk.types import Score
from reward_sdk.wire import ImageBytes, ImageFile, Text, WireSample, places


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
            reference=request.reference,
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
                header, comma, data = str(item.get("image_url")).partition(";base64,")
                if not comma or not header.startswith("data:image/"):
                    raise ScoringError("input_image: no data URL in base64, and none is fetched")
                return ImageBytes(base64=data, view=request.view)
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
    components = {name: weight * logs[name] for name, weight in weights.items()}
    failure = {}
    if score is None or score.total is None:
        reasons = [] if score is None else [part.reason for part in score.parts.values()]
        reason = problem or "; ".join(filter(None, reasons))
        failure = {"_ng_failure_class": "reward_failed", "_ng_failure_reason": reason}
        components = dict.fromkeys(weights, 0.0)
    elif plain := sum(components.values()):  # a missing part scales up the others
        scale = score.total / plain
        components = {name: value * scale for name, value in components.items()}
    reward = sum(components.values())
    echo = request.model_dump()
    return {**echo, **logs, "reward": reward, "reward_components": components, **failure}
