"""LLaVA-Rad's annotations of MIMIC-CXR (physionet.org/content/llava-rad-mimic-cxr-annotation), and
the images of MIMIC-CXR-JPG:

    chat_train_MIMIC_CXR_all_gpt4extract_rulebased_v1.json   and dev, test
    files/p10/p10000032/s50414267/<dicom_id>.jpg

An entry is an image and one of two extractions of its study's report, by GPT-4 or by MIMIC's rules:
all of a study become one. Its report is GPT-4's, which leaves out what only prior films can tell,
else the rules'. In the test split it is the rules' alone, as LLaVA-Rad tests: a study that has none
has no report. `reason` is the indication.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from reward_sdk.errors import ConfigError
from reward_sdk.observations import OBSERVATIONS
from valor_plugin.data import tables
from valor_plugin.data.datasets import Found
from valor_plugin.data.datasets.mimic_cxr import FILES
from valor_plugin.data.drafts import Draft, labels_of, only
from valor_plugin.data.views import view_of

_SOURCE = "llava-rad-mimic-cxr-annotation 1.0.0 (physionet.org)"
_SPLITS = ("train", "dev", "test")
_KEYS = ("view", "generate_method", "reason", "impression", "chexpert_labels")


def find(src: Path) -> Found:
    return {
        split: tables.needed(
            src, _SOURCE, f"chat_{split}_MIMIC_CXR_all_gpt4extract_rulebased_v1.json"
        )
        for split in _SPLITS
    } | {"images": tables.tree(src, "p*/p*/s*/*.jpg", "MIMIC-CXR-JPG", *FILES)}


def rows(found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    for split in _SPLITS:
        for number, row in enumerate(tables.json_items(found[split]), 1):
            try:
                image, findings = row["image"], row["conversations"][1]["value"]
                study = PurePosixPath(image).parts[-2]
            except (LookupError, TypeError):
                raise ConfigError(
                    f"{found[split]}: entry {number} has no 'image' of the form "
                    "mimic/p10/p.../s.../x.jpg, or no two 'conversations'"
                ) from None
            said = {key: row.get(key) for key in _KEYS}
            yield study, said | {"image": image, "findings": findings, "split": split}


def draft(study: str, rows: list[dict[str, Any]], found: Found) -> Draft:
    split = only([row["split"] for row in rows], "its rows are in several splits")
    views = {row["image"].removeprefix("mimic/"): view_of(row["view"]) for row in rows}
    usable = [row for row in rows if split != "test" or row["generate_method"] == "rule-based"]
    usable.sort(key=lambda row: (not _findings(row), row["generate_method"] != "gpt4"))
    chosen: Mapping[str, Any] = usable[0] if usable else {}
    labels = rows[0]["chexpert_labels"]
    return Draft(
        images=tuple((found["images"] / image, view) for image, view in views.items()),
        patient=PurePosixPath(rows[0]["image"]).parts[-3],
        sections={
            "findings": _findings(chosen),
            "impression": chosen.get("impression"),
            "indication": rows[0]["reason"],
        },
        no_report=None if usable else "extracted by GPT-4 alone, on which LLaVA-Rad does not test",
        labels=labels and labels_of([labels.get(name) for name in OBSERVATIONS]),
        split=split,
        merged=len(rows) - 1,
    )


def _findings(row: Mapping[str, Any]) -> str | None:
    """Where an extraction has none, the file has NaN."""
    said = row.get("findings")
    return said.strip() or None if isinstance(said, str) else None
