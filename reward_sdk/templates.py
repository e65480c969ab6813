"""HTML pages from Jinja templates: the server's, the audit's, and the plugin's evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reward_sdk.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Template


def template(folder: Path, name: str) -> Template:
    """A Jinja template of an HTML page. What it is given is escaped, and what it is not given is an
    error.

    Args:
        folder: folder that the template's file stands in.
        name: name of the template's file.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ConfigError(f"HTML pages: {error}: pip install 'valor-rrg[report]'") from error
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
