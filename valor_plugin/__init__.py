"""Trains LLaVA-Med with verifiable and image-grounded rewards inside OpenRLHF.

`__version__` is that of the distribution, looked up when it is asked for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from reward_sdk import __version__

        return __version__
