"""What every process of a run must know, carried to it in one environment variable.

Ray hands environment variables to all its workers, and vLLM's processes inherit them, so this
reaches every process on every node without a shared file. (The run's folder must be shared by the
nodes all the same: processes write checkpoints and records there.) Ray also logs it, so that no
secret may be in it, see `valor_plugin.host.cluster`.
"""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict

from valor_plugin.llava_med.parts import Part
from valor_plugin.recipe import Advantage, Lora

_VARIABLE = "VALOR_HOST_SETTINGS"


class HostSettings(BaseModel):
    """What the processes of a run must know, handed on in their environment.

    Attributes:
        run: identity of the run, which no other has, in the environment of every process that
            belongs to it.
        records: path of the folder with the files that `valor_plugin.records` describes.
        device: "cpu" or "cuda"; "cpu" replaces what the host can only do on CUDA, see
            `valor_plugin.host.cpu`.
        trainable: parts of the policy that train.
        lora: sizes of the adapters, used where "lora" is among `trainable`.
        advantage: how rewards become advantages.
        rewards: the resolved reward set, as `RewardSet.from_config` reads it, or `server` and the
            URLs of reward servers.
        served: digest of the set that reward servers serve; None without servers.
        bounds: range (low, high) of the set's totals.
        log_keys: keys of the logs of every score.
        actors: number of Ray actors that the host starts.
        rollout_images: number of images that a rollout has at most.
        banned_tokens: ids of tokens that the policy must never sample.
        seed: random seed of the order of the studies.
        deterministic: whether every sample has a seed of its own, so that the run can be repeated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    records: str
    device: str
    trainable: tuple[Part, ...]
    lora: Lora
    advantage: Advantage
    rewards: dict
    served: str | None
    bounds: tuple[float, float]
    log_keys: tuple[str, ...]
    actors: int
    rollout_images: int
    banned_tokens: tuple[int, ...]
    seed: int
    deterministic: bool

    def environment(self) -> dict[str, str]:
        """What every process of the run has in its environment."""
        return {
            _VARIABLE: self.model_dump_json(),
            "PYTHONUNBUFFERED": "1",
            "RAY_DEDUP_LOGS": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    @classmethod
    def current(cls) -> HostSettings | None:
        """This process's settings; None where it does not belong to one of our runs."""
        text = os.environ.get(_VARIABLE)
        return cls.model_validate_json(text) if text else None
