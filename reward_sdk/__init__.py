"""Verifiable, clinical, format and image-text rewards for chest X-ray report generation.

    from reward_sdk import RewardSet, Sample

    rewards = RewardSet.from_config({"rouge_l": {"weight": 0.9}, "format": {"weight": 0.1}})
    [score] = rewards.score([Sample("<report> No effusion. </report>", "No pleural effusion.")])

What stands in `__all__` is imported when it is first asked for; `__version__` is looked up then.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward_sdk.client import RewardClient
    from reward_sdk.images import open_image
    from reward_sdk.registry import Reward, reward
    from reward_sdk.reward_set import RewardSet
    from reward_sdk.types import Evidence, ImageRef, Outcome, Sample, Score

    __version__: str

__all__ = [
    "Evidence", "ImageRef", "Outcome", "Reward", "RewardClient", "RewardSet", "Sample", "Score",
    "open_image", "reward",
]  # fmt: skip

_HOME = {
    "Reward": "registry", "reward": "registry", "RewardClient": "client", "RewardSet": "reward_set",
    "open_image": "images",
}  # fmt: skip


if not TYPE_CHECKING:  # whose reader would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            found = import_module("importlib.metadata").version("valor-rrg")
        elif name in __all__:
            found = getattr(import_module(f"{__name__}.{_HOME.get(name, 'types')}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found  # from now on without this detour
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
