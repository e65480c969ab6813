"""ReXGradient-160K (huggingface.co/datasets/rajpurkarlab/ReXGradient-160K):

    metadata/train_metadata_view_position.json   objects by study; and valid, test
    deid_png/<patient>/<accession>/studies/...   of deid_png.part00 to 09: a tar, zstandard

The CSV files beside the JSON name no images. Of the view positions "UNKNOWN", "N/A" and "None" are
not known; words such as SUPINE stay, as they say nothing of front or side.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from valor_plugin.data import tables
from valor_plugin.data.datasets import Found
from valor_plugin.data.drafts import Draft, Rejected, only
from valor_plugin.data.views import view_of

_SOURCE = "ReXGradient-160K (huggingface.co/datasets/rajpurkarlab/ReXGradient-160K)"
_SPLITS = ("train", "valid", "test")
_SECTIONS = ("Findings", "Impression", "Indication", "Comparison")
_KEYS = (*_SECTIONS, "ImagePath", "ImageViewPosition", "PatientAge", "PatientSex")


def find(src: Path) -> Found:
    return {
        split: tables.needed(src, _SOURCE, f"{split}_metadata_view_position.json")
        for split in _SPLITS
    } | {"images": tables.needed(src, f"the parts of {_SOURCE}, to be unpacked", "deid_png")}


def rows(found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    for split in _SPLITS:
        for study, row in tables.json_pairs(found[split], "ImagePath", "Findings"):
            yield study, {key: row.get(key) for key in _KEYS} | {"split": split}


def draft(study: str, rows: list[dict[str, Any]], found: Found) -> Draft:
    row = rows[0]
    paths = [path.partition("deid_png/")[2] for path in row["ImagePath"] or ()]
    views = row["ImageViewPosition"] or [None] * len(paths)
    if len(views) != len(paths):
        raise Rejected("it has not as many views as images")
    return Draft(
        images=tuple(
            (found["images"] / path, view_of(view)) for path, view in zip(paths, views, strict=True)
        ),
        patient=paths[0].partition("/")[0] if paths else None,
        sections={name.lower(): _text(row[name]) for name in _SECTIONS},
        age=row["PatientAge"],
        sex=row["PatientSex"],
        split=only([row["split"] for row in rows], "its rows are in several splits"),
    )


def _text(section: str | None) -> str | None:
    return None if section is None or section.strip().lower() == "none" else section
