"""Where the errors of commands become a paragraph on screen and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from reward_sdk.errors import RewardSDKError

_EXTRAS = {
    "bertscore": ("bert_score",),
    "clinical": ("radgraph", "tokenizers", "transformers"),
    "openrlhf": (
        "accelerate", "datasets", "deepspeed", "einops", "openrlhf", "safetensors", "vllm", "wandb",
    ),
    "ray": ("ray",),
    "report": ("jinja2", "markupsafe", "matplotlib"),
    "server": (
        "fastapi", "httptools", "multipart", "prometheus_client", "python_multipart", "starlette",
        "uvicorn", "uvloop",
    ),
    "sft": ("peft", "trl"),
    "text": ("nltk",),
    "vision": ("pydicom", "scipy", "torch", "torchvision", "torchxrayvision"),
}  # fmt: skip
_EXTRA_OF = {module: extra for extra, modules in _EXTRAS.items() for module in modules}


class Boundary(click.Group):
    """A group of commands that simply raise. Exit codes: that of a `RewardSDKError`, 2 for a file
    that cannot be read or written and for a package of an extra that is not installed, 130 after
    Ctrl-C.

    Args:
        stopped: name of a command -> what it says after Ctrl-C; "stopped" where it is not named.
        extra: name of the extra of this distribution that has all that the commands import; by
            default the one that has the missing package.
        options: keyword arguments of `click.Group`.
    """

    def __init__(
        self,
        *,
        stopped: Mapping[str, str] | None = None,
        extra: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._stopped, self._extra = stopped or {}, extra

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever read the output has enough; click ends in silence
            raise
        except RewardSDKError as error:
            message, code = str(error), error.exit_code
        except OSError as error:  # an output names a folder, cannot be written, finds no room
            message, code = f"{error.filename or 'the output'}: {error.strerror or error}", 2
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if module not in _EXTRA_OF:  # an import of ours that is wrong
                raise
            extra = self._extra or _EXTRA_OF[module]
            message, code = f"{module} is not installed: pip install 'valor-rrg[{extra}]'", 2
        except KeyboardInterrupt:
            message, code = self._stopped.get(ctx.invoked_subcommand or "", "stopped"), 130
        click.secho("error: ", fg="red", nl=False, err=True)
        click.echo(message, err=True)
        sys.exit(code)
