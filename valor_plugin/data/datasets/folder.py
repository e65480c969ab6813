"""Any folder of images: every PNG, JPEG or DICOM file below it is a study without a report.
Links to folders are not followed."""

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
    if next(_files(src), None) is None:
        raise ConfigError(f"{src} holds no PNG or JPEG image, and no DICOM file (.dcm)")
    return {"images": src}


def _files(src: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}")

    for folder, folders, files in os.walk(src, onerror=fail):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(_SUFFIXES):
                yield os.path.relpath(os.path.join(folder, name), src)


def rows(found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, {"file": name}) for name in _files(found["images"]))


def draft(study: str, rows: list[dict[str, Any]], found: Found) -> Draft:
    return Draft(images=((found["images"] / rows[0]["file"], None),), no_report="no reports")
