"""PadChest-GR (bimcv.cipf.es/bimcv-projects/padchest-gr):

    grounded_reports_20240819.json                studies with sentences and the boxes of each
    master_table.csv                              patient, sex, age and split, a row a label
    Padchest_GR_files/PadChest_GR/<ImageID>       of PadChest_GR.zip.001 to 037, which are one zip

The report is the English sentences in their order, which GPT-4 made of the Spanish report; there is
no impression. Boxes come with their sentence and its labels; those of a second reader, under
`extra_boxes`, are left out: together they would mark most findings twice. A study with a box that
is not inside of the image is rejected.

All images are frontal ones, PA or AP (arXiv:2411.05085).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reward_sdk.errors import explain
from valor_plugin.data import tables
from valor_plugin.data.datasets import Found
from valor_plugin.data.drafts import Draft, Rejected
from valor_plugin.data.schema import RowBox

_SOURCE = "PadChest-GR (bimcv.cipf.es/bimcv-projects/padchest-gr)"
_COLUMNS = ("PatientID", "PatientSex_DICOM", "split")


def find(src: Path) -> Found:
    folders = ("PadChest_GR", "Padchest_GR_files")
    return {
        "reports": tables.needed(src, _SOURCE, "grounded_reports_20240819.json"),
        "table": tables.needed(src, f"{_SOURCE}, to be unzipped", "master_table.csv"),
        "images": tables.find(src, folders[0])
        or tables.needed(src, f"PadChest_GR.zip of {_SOURCE}, to be unzipped", *folders),
    }


def rows(found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in tables.json_items(found["reports"], "StudyID", "ImageID", "findings"):
        yield str(row["StudyID"]), {"image": row["ImageID"], "findings": row["findings"]}
    for row in tables.csv_rows(found["table"], "StudyID", *_COLUMNS):
        said = {name: row[name] for name in _COLUMNS}
        yield row["StudyID"], said | {"age": row.get("PatientAge")}


def draft(study: str, rows: list[dict[str, Any]], found: Found) -> Draft:
    report = next((row for row in rows if "findings" in row), None)
    known = next((row for row in rows if "split" in row), None)
    if report is None or known is None:
        raise Rejected("not in the reports" if report is None else "not in the table")
    sentences, boxes = [], []
    for finding in report["findings"] or ():
        sentence = " ".join((finding.get("sentence_en") or "").split())
        sentences.append(sentence)
        for box in finding.get("boxes") or ():
            label = ", ".join(finding.get("labels") or ())
            boxes.append(_box(box, label or None, sentence or None))
    return Draft(
        images=((found["images"] / report["image"], "FRONTAL"),) if report["image"] else (),
        patient=known["PatientID"],
        sections={"findings": "\n\n".join(sentences)},
        age=known["age"],
        sex=known["PatientSex_DICOM"],
        boxes=tuple(boxes),
        split=known["split"],
    )


def _box(box: Any, label: str | None, sentence: str | None) -> RowBox:
    try:
        return RowBox(image=0, box=box, label=label, sentence=sentence)
    except ValidationError as error:
        raise Rejected("a box is not inside of the image", explain(error)) from None
