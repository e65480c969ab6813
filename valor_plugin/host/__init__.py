"""Every touch of OpenRLHF's, Ray's and vLLM's internals; `install` holds the table."""

from pathlib import Path


def executor_path() -> str:
    """The file for the host's `--train.agent_func_path`."""
    return str(Path(__file__).with_name("executor.py"))
