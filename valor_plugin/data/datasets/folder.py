"""Any folder of images: every PNG, JPEG or DICOM file below it is a study without a report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reward_sdk.errors import ConfigError
from valor_plugin.data.datasets import Found
from valor_plugin.data.drafts import Draft

_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")


def find(src: Path) -> Found:
    if not src.is_dir():
        raise ConfigError(f"{src} is no folder")
    return {"images": src}


def rows(found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    src = found["images"]
    for folder, folders, files in os.walk(src):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(_SUFFIXES):
                yield os.path.relpath(os.path.join(folder, name), src), {}


def draft(study: str, rows: list[dict[str, Any]], found: Found) -> Draft:
    return Draft(images=((found["images"] / study, None),), no_report="no reports")
