"""Small trees in the exact layouts of chest X-ray datasets, made up: nothing in them is of a
patient."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from PIL import Image

from reward_sdk.observations import OBSERVATIONS

SENTENCES = (
    "No pleural effusion.", "The heart is mildly enlarged.", "There is a small left effusion.",
    "No pneumothorax.", "Lungs are clear.", "Patchy opacity at the right base.",
    "Mild pulmonary edema.", "A right picc line ends in the svc.", "No acute osseous abnormality.",
)  # fmt: skip


def film(kind: str = "JPEG") -> bytes:
    """The bytes of a small grey image."""
    data = BytesIO()
    Image.new("L", (8, 8), 90).save(data, kind)
    return data.getvalue()


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """A CSV file, gzipped if its name says so."""
    text = StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    data = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def write_json(path: Path, content: Any) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def link(image: Path, places: Iterable[Path]) -> None:
    """The same image at many places."""
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.hardlink_to(image)


def mimic_report(rng: random.Random) -> str:
    """A report in MIMIC-CXR's form."""
    findings = " ".join(rng.sample(SENTENCES, 4)) + f" {rng.randrange(10**6)} views were seen."
    wrapped = findings.replace(". ", ".\n ", 1)
    return (
        " " * 33 + "FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n\n INDICATION:  ___F with "
        f"cough  // eval for pneumonia\n\n COMPARISON:  ___.\n\n FINDINGS: \n \n {wrapped}\n\n "
        f"IMPRESSION: \n \n {rng.choice(SENTENCES)}\n"
    )


def write_mimic(root: Path, studies: int, seed: int = 0) -> None:
    """MIMIC-CXR-JPG and the reports of MIMIC-CXR as `wget -r` leaves them: so many studies, of one
    to three images, of patients with one to four studies; one patient in ten is for testing."""
    rng = random.Random(seed)
    base = root / "physionet.org/files"
    jpg, text = base / "mimic-cxr-jpg/2.1.0", base / "mimic-cxr/2.1.0"
    jpg.mkdir(parents=True)
    image = root / "film.jpg"
    image.write_bytes(film())
    split_rows, metadata, labels = [], [], []
    patient = 10_000_000
    while len(labels) < studies:
        patient += rng.randint(1, 3000)
        split = rng.choices(("train", "validate", "test"), (8, 1, 1))[0]
        for _ in range(min(rng.randint(1, 4), studies - len(labels))):
            study = 50_000_000 + len(labels) * 7
            folder = f"files/p{patient // 10**6}/p{patient}"
            views = rng.choice(
                (("PA", "LATERAL"), ("AP",), ("", "LATERAL"), ("LATERAL", "PA", "AP"))
            )
            for number, view in enumerate(views):
                dicom = f"{study:08x}-{number:08x}"
                ids = {"dicom_id": dicom, "subject_id": patient, "study_id": study}
                split_rows.append(ids | {"split": split})
                metadata.append(
                    ids | {"PerformedProcedureStepDescription": "CHEST (PA AND LAT)",
                           "ViewPosition": view, "Rows": 3056, "Columns": 2544,
                           "StudyDate": 21800506, "StudyTime": "213014.531",
                           "ViewCodeSequence_CodeMeaning": ""}
                )  # fmt: skip
                link(image, [jpg / folder / f"s{study}" / f"{dicom}.jpg"])
            report = text / folder / f"s{study}.txt"
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(mimic_report(rng))
            said = {
                name: rng.choice(("1.0", "0.0", "-1.0", "", "")) for name in sorted(OBSERVATIONS)
            }
            labels.append({"subject_id": patient, "study_id": study} | said)
    write_csv(jpg / "mimic-cxr-2.0.0-split.csv.gz", split_rows)
    write_csv(jpg / "mimic-cxr-2.0.0-metadata.csv.gz", metadata)
    write_csv(jpg / "mimic-cxr-2.0.0-chexpert.csv.gz", labels)
