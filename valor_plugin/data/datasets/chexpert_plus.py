"""CheXpert Plus (stanfordaimi.azurewebsites.net, or Stanford's Redivis):

    df_chexpert_plus_240401.csv                      a row an image, with the sections of its report
    PNG/train/patient00001/study1/view1_frontal.png  and PNG/valid; or the DICOM files, or JPEG
    chexbert_labels/impression_fixed.json            of chexbert_labels.zip; may be missing

A study is a folder of images, patient00001/study1. The table has the report anew for each image; in
one study of thirty findings or impression differ, so that it is not known which film they speak of:
such studies are left out. Labels are CheXbert's of the impression, as CheXpert's own were: those of
the whole report also say what the clinical history says, and three reports in four lack findings.
The 234 images of `valid` are those that CheXpert validates on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from reward_sdk.observations import OBSERVATIONS
from valor_plugin.data import tables
from valor_plugin.data.datasets import Found
from valor_plugin.data.drafts import MANY_REPORTS, Draft, Rejected, labels_of, only
from valor_plugin.data.views import view_of

_SOURCE = "CheXpert Plus (aimi.stanford.edu/datasets/chexpert-plus)"
_SECTIONS = {
    "findings": "section_findings",
    "impression": "section_impression",
    "comparison": "section_comparison",
    "indication": "section_clinical_history",
    "history": "section_history",
}
_COLUMNS = ("deid_patient_id", "frontal_lateral", "ap_pa", "age", "sex", "split")
_ENDINGS = (".png", ".jpg", ".dcm")


def find(src: Path) -> Found:
    found = {"table": tables.needed(src, _SOURCE, "df_chexpert_plus_240401.csv")}
    if (labels := tables.find(src, "impression_fixed.json")) is not None:
        found["labels"] = labels
    found["images"] = tables.tree(src, "*/patient*/study*/view*", _SOURCE, "train", "valid")
    return found


def rows(found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in tables.csv_rows(found["table"], "path_to_image", *_COLUMNS, *_SECTIONS.values()):
        sections = {name: row[column] for name, column in _SECTIONS.items()}
        said = {name: row[name] for name in _COLUMNS}
        yield _study(row["path_to_image"]), {
            "image": row["path_to_image"], "sections": sections, **said
        }  # fmt: skip
    if "labels" in found:
        for row in tables.json_lines(found["labels"], "path_to_image"):
            labels = [row.get(name) for name in OBSERVATIONS]
            yield _study(row["path_to_image"]), {"labels": labels}


def _study(image: str) -> str:
    """train/patient00001/study1/view1_frontal.jpg -> patient00001/study1"""
    return "/".join(PurePosixPath(image).parts[-3:-1])


def draft(study: str, rows: list[dict[str, Any]], found: Found) -> Draft:
    images = [row for row in rows if "image" in row]
    labels = next((row["labels"] for row in rows if "labels" in row), None)
    if not images:
        raise Rejected("labelled, but not in the table")
    for section in ("findings", "impression"):
        only([row["sections"][section] for row in images], MANY_REPORTS)
    first = images[0]
    return Draft(
        images=tuple(
            (_file(found["images"] / row["image"]), view_of(row["ap_pa"], row["frontal_lateral"]))
            for row in images
        ),
        patient=first["deid_patient_id"],
        sections=first["sections"],
        age=first["age"],
        sex=first["sex"],
        labels=None if labels is None else labels_of(labels),
        split=only([row["split"] for row in images], "its images are in several splits"),
        merged=len(images) - 1,
    )


def _file(named: Path) -> Path:
    """The image, whatever form it was downloaded in: the table names all of them .jpg."""
    forms = [named.with_suffix(ending) for ending in _ENDINGS]
    return next((form for form in forms if form.is_file()), named)
