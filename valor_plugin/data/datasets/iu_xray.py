"""IU X-ray, the chest X-rays of Indiana University in Open-i (openi.nlm.nih.gov/faq), in one of two
forms. Kaggle's is taken if both are there, because it knows the views:

    indiana_reports.csv                   uid, indication, comparison, findings, impression, ...
    indiana_projections.csv               uid, filename, projection: Frontal or Lateral
    images/images_normalized/<filename>

    ecgen-radiology/<n>.xml               of NLMCXR_reports.tgz: 3,955 reports, 104 without images
    NLMCXR_png/<parentImage id>.png       of NLMCXR_png.tgz; views are not known

A study is called CXR<n>, as in R2Gen's annotation.json, which gives it a split by `--splits`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from valor_plugin.data import tables
from valor_plugin.data.datasets import Found
from valor_plugin.data.drafts import Draft, Rejected
from valor_plugin.data.views import view_of

_OPENI = "Open-i (openi.nlm.nih.gov/faq)"
_KAGGLE = "Kaggle, raddar/chest-xrays-indiana-university"
_SECTIONS = ("findings", "impression", "indication", "comparison")
_FIRST = "CXR1_1_IM-0001-3001.png"


def find(src: Path) -> Found:
    if (reports := tables.find(src, "indiana_reports.csv")) is not None:
        return {
            "reports": reports,
            "projections": tables.needed(src, _KAGGLE, "indiana_projections.csv"),
            "images": tables.needed(src, _KAGGLE, "images_normalized"),
        }
    xml = tables.needed(
        src, f"NLMCXR_reports.tgz of {_OPENI}; or the other from {_KAGGLE}",
        "ecgen-radiology", "indiana_reports.csv",
    )  # fmt: skip
    images = tables.needed(src, f"NLMCXR_png.tgz of {_OPENI}", "NLMCXR_png", _FIRST)
    return {"xml": xml, "images": images if images.is_dir() else images.parent}


def rows(found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    if "xml" in found:
        for name in sorted(os.listdir(found["xml"])):
            if name.endswith(".xml"):
                yield f"CXR{name.removesuffix('.xml')}", {}
        return
    for row in tables.csv_rows(found["reports"], "uid", *_SECTIONS):
        yield f"CXR{row['uid']}", {"sections": {name: row[name] for name in _SECTIONS}}
    for row in tables.csv_rows(found["projections"], "uid", "filename", "projection"):
        yield f"CXR{row['uid']}", {"image": row["filename"], "view": row["projection"]}


def draft(study: str, rows: list[dict[str, Any]], found: Found) -> Draft:
    if "xml" in found:
        return _openi(found["xml"] / f"{study.removeprefix('CXR')}.xml", found["images"])
    sections = next((row["sections"] for row in rows if "sections" in row), None)
    return Draft(
        images=tuple(
            (found["images"] / row["image"], view_of(row["view"])) for row in rows if "image" in row
        ),
        sections=sections or {},
        no_report=None if sections else "not in the table of reports",
    )


class _Tree(ElementTree.TreeBuilder):
    def doctype(self, *_: str) -> None:
        raise Rejected("its XML has a document type")  # where entities that explode are declared


def _openi(path: Path, images: Path) -> Draft:
    try:
        report = ElementTree.parse(path, ElementTree.XMLParser(target=_Tree()))
    except ElementTree.ParseError as error:
        raise Rejected("its XML is broken", str(error)) from None
    return Draft(
        images=tuple(
            (images / f"{image.get('id')}.png", None) for image in report.iter("parentImage")
        ),
        sections={
            part.get("Label", "").lower(): "".join(part.itertext())
            for part in report.iter("AbstractText")
        },
    )
