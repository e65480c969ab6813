"""Verifiable, clinical, format and image-text rewards for chest X-ray report generation.

    from reward_sdk import RewardSet, Sample

    rewards = RewardSet.from_config({"rouge_l": {"weight": 0.9}, "format": {"weight": 0.1}})
    [score] = rewards.score([Sample("<report> No effusion. </report>", "No pleural effusion.")])

What stands in `__all__` is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward_sdk.client import RewardClient
    from reward_sdk.registry import Reward, reward
    from reward_sdk.reward_set import RewardSet
    from reward_sdk.types import Evidence, ImageRef, Outcome, Sample, Score

__all__ = [
    "Evidence", "ImageRef", "Outcome", "Reward", "RewardClient", "RewardSet", "Sample", "Score",
    "reward",
]  # fmt: skip

_HOME = {
    "Reward": "registry", "reward": "registry", "RewardClient": "client", "RewardSet": "reward_set",
}  # fmt: skip


if not TYPE_CHECKING:  # whose reader would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_HOME.get(name, 'types')}"), name)
        globals()[name] = found  # from now on without this detour
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
