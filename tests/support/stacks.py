"""Fifty samples and a reward set that every stack must score alike, and each stack's way to do it.

Nothing here stands in for a stack: a way calls what a user of that stack configures, through the
installed package where the package has to be there.
"""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
from PIL import Image

from reward_sdk.reward_set import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import ImageRef, Sample, Score
from support.serving import REPORTS, misbehaving

SET = {
    "rouge_l": {"weight": 0.6},
    "bleu": {"weight": 0.3},
    "brightness": {"weight": -0.5},
    "moody": {"weight": 0.2},
}
"""Text, an image, and one that raises on some samples; together on [-.5, 1.1]."""

LOOKS = '''
from reward_sdk.images import open_image, to_gray
from reward_sdk.types import Outcome

class Brightness:
    """Mean brightness of the X-ray; darker from the side."""
    name, bounds, needs = "brightness", (0.0, 1.0), frozenset({"image"})
    def __call__(self, samples):
        return [self.part(sample.image) for sample in samples]

    def part(self, image):
        share = {"PA": 1.0, "LATERAL": 0.5}.get(image.view, 0.0)
        return Outcome(share * float(to_gray(open_image(image)).mean()) / 255)
'''


def install(folder: Path) -> dict[str, str]:
    """Installs the rewards that the set has beyond the package's own, as `pip install` would.

    Returns:
        The environment that finds them.
    """
    environment = misbehaving(folder)
    (folder / "looks.py").write_text(LOOKS)
    points = folder / "misbehaving-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text() + "brightness = looks:Brightness\n")
    return environment


def write_films(folder: Path) -> Path:
    """film0.png to film3.png, and one that is no image."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(random.integers(0, 256, (32, 24), dtype=np.uint8)).save(
            folder / f"film{i}.png"
        )
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def samples(films: Path, number: int = 50) -> list[Sample]:
    """Good ones and all kinds of others; ids name the kind."""
    made = []
    for i in range(number):
        response = wrap_report(REPORTS[i % len(REPORTS)])
        reference: str | None = REPORTS[(i // 2) % len(REPORTS)]
        view = "LATERAL" if i % 10 == 9 else "PA"
        image: ImageRef | None = ImageRef(str(films / f"film{i % 4}.png"), view=view)
        kind = "good"
        match i % 10:
            case 2:
                kind, response = "untagged", "No effusion."
            case 3:
                kind, reference = "no-reference", None
            case 4:
                kind, image = "no-image", None
            case 5:
                kind, image = "broken", ImageRef(str(films / "broken.png"))
            case 6:
                kind, image = "missing", ImageRef(str(films / "missing.png"))
            case 7:
                kind, response = "poison", wrap_report(f"poison. {REPORTS[0]}")
            case 8:
                kind, reference, image = "nothing", None, None
                response = wrap_report("poison")
        made.append(Sample(response, reference, image, f"{kind}-{i}"))
    return made


@dataclass(frozen=True)
class Outcome:
    """What a stack learns of a sample: its total, and each part; None where there is none."""

    total: float | None
    parts: Mapping[str, float | None]

    def close_to(self, other: Outcome) -> bool:
        """Whether both say the same, up to float32, in which trainers sum."""
        pairs = [(self.total, other.total), *((self.parts[n], other.parts[n]) for n in self.parts)]
        return self.parts.keys() == other.parts.keys() and all(
            a == b if a is None or b is None else math.isclose(a, b, abs_tol=2e-6) for a, b in pairs
        )


def of_score(score: Score) -> Outcome:
    parts = {name: part.value for name, part in score.parts.items()}
    return Outcome(score.total, parts if score.total is not None else dict.fromkeys(parts))


def of_logs(total: float | None, logs: Mapping[str, Any], names: Sequence[str]) -> Outcome:
    """From the constant keys that stacks without None are given."""
    parts = {name: logs[name] if logs[f"{name}/applied"] else None for name in names}
    return Outcome(total, parts if total is not None else dict.fromkeys(names))


def of_columns(
    columns: Mapping[str, Sequence[float | None]], weights: Sequence[float]
) -> list[Outcome]:
    """From the functions of TRL and ms-swift, summed as both do it."""
    outcomes = []
    for row in zip(*columns.values(), strict=True):
        known = [w * value for w, value in zip(weights, row, strict=True) if value is not None]
        parts = dict(zip(columns, row, strict=True))
        parts.pop("missing_parts")
        outcomes.append(Outcome(sum(known) if known else None, parts))
    return outcomes


Way = Callable[[str, Sequence[Sample]], list[Outcome]]
"""From where the rewards are (a file or a URL) and the samples to outcomes."""


def in_process(rewards: str, batch: Sequence[Sample]) -> list[Outcome]:
    return [of_score(score) for score in RewardSet.from_config(rewards).score(batch)]


def client(rewards: str, batch: Sequence[Sample]) -> list[Outcome]:
    from reward_sdk.client import RewardClient

    with RewardClient(rewards) as served:
        return [of_score(score) for score in served.score(batch)]


def rows(batch: Sequence[Sample]) -> dict[str, list[Any]]:
    """The columns of a training set with these samples, images by path."""
    return {
        "reference": [sample.reference for sample in batch],
        "image": [sample.image and sample.image.path for sample in batch],
        "view": [sample.image and sample.image.view for sample in batch],
        "id": [sample.id for sample in batch],
    }


def trainer(**more: Any) -> SimpleNamespace:
    """The arguments of a trainer as far as adapters read them."""
    return SimpleNamespace(
        reward_weights=None, remove_unused_columns=False, steps_per_generation=1,
        num_iterations=1, gradient_accumulation_steps=1, scale_rewards="group", **more,
    )  # fmt: skip


STATE = SimpleNamespace(global_step=0)


def trl(rewards: str, batch: Sequence[Sample]) -> list[Outcome]:
    from reward_sdk.adapters.trl import make_reward_funcs

    args = trainer()
    funcs = make_reward_funcs(rewards, args)
    completions = [[{"role": "assistant", "content": sample.response}] for sample in batch]
    columns = {
        func.__name__: func(
            prompts=["Describe."] * len(batch), completions=completions,
            completion_ids=[[1]] * len(batch), trainer_state=STATE, **rows(batch),
        )
        for func in funcs
    }  # fmt: skip
    return of_columns(columns, args.reward_weights)


def swift(rewards: str, batch: Sequence[Sample]) -> list[Outcome]:
    from swift.rewards import orms

    from reward_sdk.adapters.swift import register

    names = [*SET, "missing_parts"]
    weights = [*(entry["weight"] for entry in SET.values()), 1.0]
    before = dict(orms)
    register(rewards)
    args = trainer()
    args.reward_weights = weights
    built = [orms[name](args=args) for name in names]
    orms.clear()
    orms.update(before)
    columns = rows(batch)
    columns["images"] = [[{"path": path, "bytes": None}] if path else [] for path in
                         columns.pop("image")]  # fmt: skip
    completions = [sample.response for sample in batch]
    asked = {
        name: orm(completions, trainer_state=STATE, prompt_id=["p"] * len(batch), **columns)
        for name, orm in zip(names, built, strict=True)
    }
    # Every sample is a group of its own: those without a score get the mean of all.
    for i, sample in enumerate(batch):
        if sample.id.startswith("nothing"):
            assert asked["missing_parts"][i] not in (0.0, None)
            asked["missing_parts"][i] = None
    return of_columns(asked, weights)


def verl(rewards: str, batch: Sequence[Sample]) -> list[Outcome]:
    from reward_sdk.adapters.verl import compute_score

    async def all_of_them() -> list[dict[str, float]]:
        return await asyncio.gather(*(compute_score(**of_verl(s), rewards=rewards) for s in batch))

    return [of_unscored(result, result["score"]) for result in asyncio.run(all_of_them())]


def verl_sync(rewards: str, batch: Sequence[Sample]) -> list[Outcome]:
    from reward_sdk.adapters.verl import compute_score_sync

    results = [compute_score_sync(**of_verl(sample), rewards=rewards) for sample in batch]
    return [of_unscored(result, result["score"]) for result in results]


def of_verl(sample: Sample) -> dict[str, Any]:
    """One call of verl's reward manager."""
    image = sample.image
    extra = {"id": sample.id, "image": image and image.path, "view": image and image.view}
    return {
        "data_source": "mimic-cxr", "solution_str": sample.response,
        "ground_truth": sample.reference, "extra_info": {**extra, "num_turns": 2},
    }  # fmt: skip


def of_unscored(logs: Mapping[str, Any], total: float) -> Outcome:
    if logs["unscored"]:
        assert total == -0.5  # the set's lowest
    return of_logs(None if logs["unscored"] else total, logs, list(SET))


def label(sample: Sample) -> str:
    """The label column of OpenRLHF."""
    image = sample.image
    row = {"id": sample.id, "report": sample.reference, "image": image and image.path,
           "view": image and image.view}  # fmt: skip
    return json.dumps(row)


def openrlhf(rewards: str, batch: Sequence[Sample]) -> list[Outcome]:
    from reward_sdk.adapters.openrlhf import make_reward_func

    reward_func = make_reward_func(rewards)
    found = [
        reward_func([f"Describe. {sample.response}</s>"], ["Describe."], [label(sample)])
        for sample in batch
    ]
    return [of_openrlhf(reply, 0) for reply in found]


def of_openrlhf(reply: Mapping[str, Any], i: int) -> Outcome:
    logs = {key: values[i] for key, values in reply["extra_logs"].items()}
    return of_unscored(logs, reply["rewards"][i])


def get_reward(rewards: str, batch: Sequence[Sample]) -> list[Outcome]:
    body = {
        "query": [f"Describe. {sample.response}</s>" for sample in batch],
        "prompts": ["Describe."] * len(batch),
        "labels": [label(sample) for sample in batch],
    }
    reply = httpx.post(f"{rewards}/get_reward", json=body, timeout=60).raise_for_status().json()
    return [of_openrlhf(reply, i) for i in range(len(batch))]


def gym_row(sample: Sample) -> dict[str, Any]:
    """A row of NeMo Gym with the response to it, in the form of OpenAI's Responses API."""
    image = sample.image
    content = [{"type": "output_text", "text": sample.response, "annotations": []}]
    message = {"id": "m", "type": "message", "role": "assistant", "status": "completed",
               "content": content}  # fmt: skip
    return {
        "responses_create_params": {"input": [{"role": "user", "content": "Describe."}]},
        "reference": sample.reference,
        "image": image and image.path,
        "view": image and image.view,
        "id": sample.id,
        "response": {
            "id": "r", "created_at": 0, "model": "policy", "object": "response",
            "output": [message], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        },
    }  # fmt: skip


def of_gym(answer: Mapping[str, Any]) -> Outcome:
    failed = "_ng_failure_class" in answer
    assert answer["reward"] == sum(answer["reward_components"].values())
    return of_logs(None if failed else answer["reward"], answer, list(SET))


def verify(rewards: str, batch: Sequence[Sample]) -> list[Outcome]:
    answers = [httpx.post(f"{rewards}/verify", json=gym_row(s), timeout=60) for s in batch]
    return [of_gym(answer.raise_for_status().json()) for answer in answers]


def nemo_gym(rewards: str, batch: Sequence[Sample]) -> list[Outcome]:
    """The resources server in its own web framework, without a network between."""
    from nemo_gym.config_types import BaseServerConfig
    from nemo_gym.server_utils import ServerClient
    from omegaconf import OmegaConf

    from reward_sdk.adapters.nemo_gym import resources_server

    server_class = resources_server()
    config = server_class.model_fields["config"].annotation
    server = server_class(
        config=config(name="s", host="127.0.0.1", port=1, entrypoint="app.py", rewards=rewards),
        server_client=ServerClient(
            head_server_config=BaseServerConfig(host="127.0.0.1", port=1),
            global_config_dict=OmegaConf.create({}),
        ),
    )

    async def all_of_them() -> list[dict[str, Any]]:
        transport = httpx.ASGITransport(server.setup_webserver())
        async with httpx.AsyncClient(transport=transport, base_url="http://gym") as gym:
            answers = await asyncio.gather(*(gym.post("/verify", json=gym_row(s)) for s in batch))
        return [answer.raise_for_status().json() for answer in answers]

    return [of_gym(answer) for answer in asyncio.run(all_of_them())]


def verifiers(rewards: str, batch: Sequence[Sample]) -> list[Outcome]:
    """Through a Task's own scoring."""
    from contract.verifiers_task import scored

    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder, "rewards.py")
        plugin.write_text(
            "from reward_sdk.adapters.verifiers import make_reward\n"
            f"report = make_reward({rewards!r})\n"
        )
        traces = asyncio.run(scored(plugin, batch))
    outcomes = []
    for trace in traces:
        failed = trace.rewards.get("report", 1) is None
        values = {name: trace.rewards.get(name) for name in SET}
        parts = {name: None if value is None else value.score for name, value in values.items()}
        outcomes.append(Outcome(None if failed else trace.reward, parts))
    return outcomes


WAYS: dict[str, tuple[Way, str]] = {
    "in process": (in_process, "yaml"),
    "client": (client, "url"),
    "trl": (trl, "trl"),
    "swift": (swift, "swift"),
    "verl": (verl, "verl"),
    "verl, sync": (verl_sync, "verl"),
    "openrlhf, file": (openrlhf, "openrlhf"),
    "openrlhf, HTTP": (get_reward, "url"),
    "nemo_gym": (nemo_gym, "nemo_gym"),
    "nemo_gym, /verify": (verify, "url"),
    "verifiers": (verifiers, "verifiers"),
}
