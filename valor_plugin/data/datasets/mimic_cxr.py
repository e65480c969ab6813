"""MIMIC-CXR-JPG 2.1.0 (physionet.org/content/mimic-cxr-jpg), and the reports of MIMIC-CXR.

Both may lie anywhere below one folder, as `wget -r` leaves them, or be linked into it:

    mimic-cxr-2.0.0-metadata.csv.gz   dicom_id, subject_id, study_id, ViewPosition, ...
    mimic-cxr-2.0.0-split.csv.gz      dicom_id, subject_id, study_id, split
    mimic-cxr-2.0.0-chexpert.csv.gz   subject_id, study_id, fourteen labels; may be missing
    files/p10/p10000032/s50414267/<dicom_id>.jpg
    files/p10/p10000032/s50414267.txt               of mimic-cxr-reports.zip, unpacked

An empty ViewPosition is looked up in ViewCodeSequence_CodeMeaning, and then in
PerformedProcedureStepDescription if that names a single view.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reward_sdk.observations import OBSERVATIONS
from valor_plugin.data import tables
from valor_plugin.data.datasets import Found
from valor_plugin.data.drafts import Draft, Rejected, labels_of, only
from valor_plugin.data.views import FRONTAL, view_of

_SOURCE = "MIMIC-CXR-JPG 2.1.0"
FILES = tuple(f"files/p{n}" for n in range(10, 20))
"""What the folder of MIMIC-CXR's images, or reports, holds."""
_VIEWS = ("ViewPosition", "ViewCodeSequence_CodeMeaning", "PerformedProcedureStepDescription")


def find(src: Path) -> Found:
    found = {table: tables.needed(src, _SOURCE, *_names(table)) for table in ("metadata", "split")}
    if (labels := tables.find(src, *_names("chexpert"))) is not None:
        found["chexpert"] = labels
    found["images"] = tables.tree(src, "p*/p*/s*/*.jpg", f"the images of {_SOURCE}", *FILES)
    found["reports"] = tables.tree(
        src, "p*/p*/s*.txt", "mimic-cxr-reports.zip of MIMIC-CXR, to be unpacked", *FILES
    )
    return found


def _names(table: str) -> tuple[str, str]:
    return f"mimic-cxr-2.0.0-{table}.csv.gz", f"mimic-cxr-2.0.0-{table}.csv"


def rows(found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in tables.csv_rows(found["split"], "dicom_id", "subject_id", "study_id", "split"):
        yield f"s{row['study_id']}", {key: row[key] for key in ("subject_id", "dicom_id", "split")}
    for row in tables.csv_rows(found["metadata"], "dicom_id", "study_id", "ViewPosition"):
        said = [row.get(column) for column in _VIEWS]
        yield f"s{row['study_id']}", {"dicom_id": row["dicom_id"], "view": said}
    if "chexpert" in found:
        for row in tables.csv_rows(found["chexpert"], "study_id", *OBSERVATIONS):
            yield f"s{row['study_id']}", {"labels": [row[name] for name in OBSERVATIONS]}


def draft(study: str, rows: list[dict[str, Any]], found: Found) -> Draft:
    named = [row for row in rows if "split" in row]
    if not named:
        raise Rejected("not in the table of splits")
    views = {row["dicom_id"]: _view(*row["view"]) for row in rows if "view" in row}
    labels = next((row["labels"] for row in rows if "labels" in row), None)
    patient = named[0]["subject_id"]
    folder = f"p{patient[:2]}/p{patient}/{study}"
    text, no_report = None, None
    try:
        text = (found["reports"] / f"{folder}.txt").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        no_report = "no file of the report"
    return Draft(
        images=tuple(
            (found["images"] / folder / f"{row['dicom_id']}.jpg", views.get(row["dicom_id"]))
            for row in named
        ),
        patient=f"p{patient}",
        text=text,
        no_report=no_report,
        labels=None if labels is None else labels_of(labels),
        split=only([row["split"] for row in named], "its images are in several splits"),
    )


def _view(position: str | None, coded: str | None, procedure: str | None) -> str | None:
    view = view_of(position, coded)
    described = view_of(procedure)  # "CHEST (PA AND LAT)" names two, and says nothing of this one
    return view or (described if described in FRONTAL else None)
