"""The datasets that `openrlhf prepare` reads, one module each, see `Dataset`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from valor_plugin.data.drafts import Draft

Found = Mapping[str, Path]
"""Name -> a file or a folder of the dataset, as its module calls it."""

DATASETS = {
    "mimic-cxr": "MIMIC-CXR-JPG with the reports of MIMIC-CXR",
    "iu-xray": "IU X-ray (Open-i): its XML reports, or Kaggle's two CSV files",
    "r2gen": "R2Gen's annotation.json, of IU X-ray or MIMIC-CXR",
    "chexpert-plus": "CheXpert Plus",
    "rexgradient": "ReXGradient-160K",
    "padchest-gr": "PadChest-GR, with boxes",
    "llava-rad": "LLaVA-Rad's annotations of MIMIC-CXR",
    "folder": "any folder of images, without reports",
}
"""Name of a dataset -> what it is."""


class Dataset(Protocol):
    """What a module here has. All of it is called with what `find` gave; `draft` in other
    processes, too."""

    def find(self, src: Path) -> Found:
        """The files and folders that will be read.

        Raises:
            ConfigError: one is absent; names it, and where it is from.
        """
        ...

    def rows(self, found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
        """Id of a study and something that its tables say of it, as JSON can hold it; in any
        order, and as often for one study as it comes. Nothing that was read is kept.

        Raises:
            ConfigError: a table cannot be read; names file and place.
        """
        ...

    def draft(self, study: str, rows: list[dict[str, Any]], found: Found) -> Draft:
        """The study, by all that `rows` gave for it, in that order.

        Raises:
            drafts.Rejected: the study cannot be used.
        """
        ...


def dataset(name: str) -> Dataset:
    """The module of a dataset, by its name in `DATASETS`."""
    return cast("Dataset", import_module(f"{__name__}.{name.replace('-', '_')}"))
