"""R2Gen's annotation.json (github.com/zhjohnchan/R2Gen), of IU X-ray or MIMIC-CXR:

    annotation.json    lists train, val and test of id, report, image_path [, subject_id, study_id]
    images/            with CXR.../0.png and 1.png, or p10/p10000032/s50414267/<dicom_id>.jpg

For MIMIC-CXR, `images` may be a link to `files` of MIMIC-CXR-JPG, or be `files`. An entry for
MIMIC-CXR is an image, and the report stands with each image of a study: they become one study.
Reports are as the file has them, before R2Gen's lower case and cleaning. Views are not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reward_sdk.errors import ConfigError
from valor_plugin.data import tables
from valor_plugin.data.datasets import Found
from valor_plugin.data.drafts import Draft, only
from valor_plugin.data.splits import r2gen_rows

_SOURCE = "R2Gen (github.com/zhjohnchan/R2Gen)"


def find(src: Path) -> Found:
    annotation = tables.needed(src, _SOURCE, "annotation.json")
    there = tables.places(src, "annotation.json")
    others = [place for place in there if place.resolve() != annotation.resolve()]
    if others:
        raise ConfigError(f"{src} holds {annotation} and {others[0]}: name the folder of one")
    where = f"{_SOURCE}, or files of MIMIC-CXR-JPG"
    return {
        "annotation": annotation,
        "images": tables.needed(annotation.parent, where, "images", "files"),
    }


def rows(found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    for split, row in r2gen_rows(found["annotation"]):
        mimic = row.get("study_id")
        yield (
            f"s{mimic}" if mimic else str(row["id"]),
            {
                "split": split,
                "report": row.get("report"),
                "images": [images] if isinstance(images := row.get("image_path"), str) else images,
                "patient": row.get("subject_id"),
            },
        )


def draft(study: str, rows: list[dict[str, Any]], found: Found) -> Draft:
    patient = rows[0]["patient"]
    return Draft(
        images=tuple(
            (found["images"] / image, None)
            for image in dict.fromkeys(image for row in rows for image in row["images"] or ())
        ),
        patient=f"p{patient}" if patient else None,
        sections={
            "findings": only([row["report"] for row in rows], "its rows have several reports")
        },
        split=only([row["split"] for row in rows], "its rows are in several splits"),
        merged=len(rows) - 1,
    )
