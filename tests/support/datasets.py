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
        patient += rng.randint(1, 190)
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


def sentences(rng: random.Random) -> str:
    """Findings that no other study has."""
    return " ".join(rng.sample(SENTENCES, 3)) + f" {rng.randrange(10**9)} wires are seen."


def split_at(number: int, names: Sequence[str]) -> str:
    """A split for a patient: of four, two or more are in the first."""
    return names[number % 4 % len(names)]


def write_iu_kaggle(root: Path, studies: int, seed: int = 0) -> None:
    """IU X-ray as Kaggle has it: the side view of a study stands before its frontal one."""
    rng = random.Random(seed)
    reports, projections = [], []
    image = root / "film.png"
    root.mkdir(parents=True, exist_ok=True)
    image.write_bytes(film("PNG"))
    for uid in range(1, studies + 1):
        reports.append(
            {"uid": uid, "MeSH": "normal", "Problems": "normal", "image": "Xray Chest 2 Views",
             "indication": "Cough", "comparison": "XXXX, XXXX", "findings": sentences(rng),
             "impression": rng.choice(SENTENCES)}
        )  # fmt: skip
        for number, projection in enumerate(("Lateral", "Frontal")):
            name = f"{uid}_IM-{uid:04}-{number + 1}001.dcm.png"
            projections.append({"uid": uid, "filename": name, "projection": projection})
            link(image, [root / "images/images_normalized" / name])
    write_csv(root / "indiana_reports.csv", reports)
    write_csv(root / "indiana_projections.csv", projections)


def openi_report(number: int, sections: Mapping[str, str], images: Iterable[str]) -> str:
    """A report as Open-i writes it."""
    texts = "".join(f'<AbstractText Label="{k}">{v}</AbstractText>' for k, v in sections.items())
    films = "".join(
        f'<parentImage id="{name}"><caption>Xray Chest PA and Lateral</caption></parentImage>'
        for name in images
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{number}"/><MedlineCitation>'
        f"<Article><Abstract>{texts}</Abstract></Article></MedlineCitation>{films}</eCitation>"
    )


def write_iu_openi(root: Path, studies: int, seed: int = 0) -> None:
    """IU X-ray as Open-i has it."""
    rng = random.Random(seed)
    (root / "ecgen-radiology").mkdir(parents=True)
    image = root / "film.png"
    image.write_bytes(film("PNG"))
    for number in range(1, studies + 1):
        names = [f"CXR{number}_1_IM-{number:04}-{view}001" for view in (3, 4)]
        sections = {
            "COMPARISON": "None.", "INDICATION": "Cough", "FINDINGS": sentences(rng),
            "IMPRESSION": rng.choice(SENTENCES),
        }  # fmt: skip
        report = openi_report(number, sections, names)
        (root / f"ecgen-radiology/{number}.xml").write_text(report)
        if number == 1:
            names[0] = "CXR1_1_IM-0001-3001"
        link(image, [root / f"NLMCXR_png/{name}.png" for name in names])


def write_r2gen_iu(root: Path, studies: int, seed: int = 0) -> None:
    """IU X-ray as R2Gen has it."""
    rng = random.Random(seed)
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    root.mkdir(parents=True, exist_ok=True)
    (root / "film.png").write_bytes(film("PNG"))
    for number in range(1, studies + 1):
        name = f"CXR{number}_IM-{number:04}"
        paths = [f"{name}/{view}.png" for view in (0, 1)]
        split = split_at(number, list(entries))
        entries[split].append({"id": name, "report": sentences(rng), "image_path": paths,
                               "split": split})  # fmt: skip
        link(root / "film.png", [root / "iu_xray/images" / path for path in paths])
    write_json(root / "iu_xray/annotation.json", entries)


def write_r2gen_mimic(root: Path, studies: int, seed: int = 0) -> None:
    """MIMIC-CXR as R2Gen has it: two entries a study, for its two images."""
    rng = random.Random(seed)
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    root.mkdir(parents=True, exist_ok=True)
    (root / "film.jpg").write_bytes(film())
    for number in range(studies):
        patient, study, report = 10_000_000 + number, 50_000_000 + number, sentences(rng)
        split = split_at(number, list(entries))
        for view in range(2):
            dicom = f"{study:08x}-{view:08x}"
            path = f"p{patient // 10**6}/p{patient}/s{study}/{dicom}.jpg"
            entries[split].append(
                {"id": dicom, "study_id": study, "subject_id": patient, "report": report,
                 "image_path": [path], "split": split}
            )  # fmt: skip
            link(root / "film.jpg", [root / "images" / path])
    write_json(root / "annotation.json", entries)


def write_chexpert_plus(root: Path, studies: int, seed: int = 0) -> None:
    """CheXpert Plus with its PNG files: two studies a patient, side views first."""
    rng = random.Random(seed)
    rows, labels = [], []
    root.mkdir(parents=True, exist_ok=True)
    (root / "film.png").write_bytes(film("PNG"))
    for number in range(studies):
        patient = f"patient{number // 2 + 1:05}"
        split = split_at(number // 2, ("train", "valid"))
        findings, impression = sentences(rng), rng.choice(SENTENCES)
        said = {name: rng.choice((1.0, 0.0, -1.0, None)) for name in OBSERVATIONS}
        for view, (side, position) in enumerate((("Lateral", ""), ("Frontal", "AP")), 1):
            folder = f"{split}/{patient}/study{number % 2 + 1}"
            path = f"{folder}/view{view}_{side.lower()}.jpg"
            rows.append(
                {"path_to_image": path, "path_to_dcm": path.replace(".jpg", ".dcm"),
                 "frontal_lateral": side, "ap_pa": position, "deid_patient_id": patient,
                 "patient_report_date_order": number % 2 + 1,
                 "report": f"NARRATIVE:\n{path}\n\n{findings}", "section_narrative": "",
                 "section_clinical_history": "\nCough", "section_history": "",
                 "section_comparison": "None.", "section_technique": "",
                 "section_procedure_comments": "", "section_findings": f"\n{findings}\n",
                 "section_impression": f"\n1. {impression}\n2. No acute disease.",
                 "section_end_of_impression": "", "section_summary": "",
                 "section_accession_number": number, "age": "62.0", "sex": "Female",
                 "race": "Unknown", "ethnicity": "Unknown", "split": split}
            )  # fmt: skip
            labels.append({"path_to_image": path, **said})
            link(root / "film.png", [(root / "PNG/PNG" / path).with_suffix(".png")])
    write_csv(root / "df_chexpert_plus_240401.csv", rows)
    (root / "chexbert_labels").mkdir()
    (root / "chexbert_labels/impression_fixed.json").write_text(
        "".join(json.dumps(row) + "\n" for row in labels)
    )


def write_rexgradient(root: Path, studies: int, seed: int = 0) -> None:
    """ReXGradient-160K, unpacked."""
    rng = random.Random(seed)
    entries: dict[str, dict[str, Any]] = {"train": {}, "valid": {}, "test": {}}
    root.mkdir(parents=True, exist_ok=True)
    (root / "film.png").write_bytes(film("PNG"))
    for number in range(studies):
        patient, accession = f"GRDN{number:012}", f"GRDNA{number:011}"
        uid = f"2.25.{number + 10**9}"
        folder = f"../deid_png/{patient}/{accession}/studies/{uid}/series/{uid}.1/instances"
        paths = [f"{folder}/{uid}.1.{view}.png" for view in (1, 2)]
        entries[split_at(number, list(entries))][f"p{patient}_a{accession}_s{uid}"] = {
            "PatientID": patient, "AccessionNumber": accession, "StudyInstanceUid": uid,
            "PatientSex": "F", "PatientAge": "062Y", "EthnicGroup": float("nan"),
            "StudyDescription": "XR CHEST 2 VW", "StudyDate": 20180101,
            "ImageModality": ["DX", "DX"], "ImageShape": [[512, 512], [512, 512]],
            "ImageBodyPart": ["CHEST", "CHEST"],
            "ImageViewPosition": ["LATERAL", rng.choice(("POSTERO_ANTERIOR", "PA"))],
            "ImagePath": paths, "Findings": sentences(rng), "Impression": rng.choice(SENTENCES),
            "Indication": "Cough", "Comparison": "None",
        }  # fmt: skip
        link(root / "film.png", [root / "metadata" / path for path in paths])
    for split, studies_ in entries.items():
        write_json(root / f"metadata/{split}_metadata_view_position.json", studies_)


def write_padchest_gr(root: Path, studies: int, seed: int = 0) -> None:
    """PadChest-GR, unzipped: an abnormal sentence with boxes, and a normal one without the key."""
    rng = random.Random(seed)
    reports, table = [], []
    root.mkdir(parents=True, exist_ok=True)
    (root / "film.png").write_bytes(film("PNG"))
    for number in range(studies):
        study, image = f"{10**38 + number}", f"{10**38 + number}_{number:06}.png"
        reports.append(
            {"StudyID": study, "ImageID": image, "PreviousStudyID": None, "PreviousImageID": None,
             "findings": [
                 {"sentence_en": f"Nodule of {rng.randrange(10**6)} mm.", "sentence_es": "Nódulo.",
                  "abnormal": True, "boxes": [[0.1, 0.2, 0.3, 0.4]],
                  "extra_boxes": [[0.1, 0.2, 0.3, 0.5]], "labels": ["nodule"],
                  "locations": ["right"], "progression": None},
                 {"sentence_en": "No pleural effusion", "sentence_es": "No derrame.",
                  "abnormal": False},
             ]}
        )  # fmt: skip
        for label in ("nodule", "Normal"):
            table.append(
                {"StudyID": study, "ImageID": image, "label": label,
                 "split": split_at(number, ("train", "validation", "test")), "PatientID": number,
                 "PatientSex_DICOM": "F", "PatientAge": "62", "label_group": label}
            )  # fmt: skip
        link(root / "film.png", [root / "Padchest_GR_files/PadChest_GR" / image])
    write_json(root / "grounded_reports_20240819.json", reports)
    write_csv(root / "master_table.csv", table)


def write_llava_rad(root: Path, studies: int, seed: int = 0) -> None:
    """LLaVA-Rad's annotations with the images of MIMIC-CXR-JPG: both extractions of every image."""
    rng = random.Random(seed)
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "dev": [], "test": []}
    root.mkdir(parents=True, exist_ok=True)
    (root / "film.jpg").write_bytes(film())
    for number in range(studies):
        patient, study, findings = 10_000_000 + number, 50_000_000 + number, sentences(rng)
        for view, position in enumerate(("LATERAL", "AP")):
            path = f"p{patient // 10**6}/p{patient}/s{study}/{study:08x}-{view:08x}.jpg"
            for method in ("rule-based", "gpt4"):
                entries[split_at(number, list(entries))].append(
                    {"id": f"{patient}_{study}", "image": f"mimic/{path}",
                     "generate_method": method, "reason": "___ year old\nwith cough",
                     "impression": None, "indication": None, "history": None, "view": position,
                     "orientation": "Erect",
                     "chexpert_labels": {name: rng.choice((1.0, 0.0, -1.0, float("nan")))
                                         for name in sorted(OBSERVATIONS)},
                     "conversations": [
                         {"from": "human", "value": "<image>\nDescribe the findings.\n"},
                         {"from": "gpt", "value": f"{findings} As read by {method}."},
                     ]}
                )  # fmt: skip
            link(root / "film.jpg", [root / "files" / path])
    for split, rows in entries.items():
        write_json(root / f"chat_{split}_MIMIC_CXR_all_gpt4extract_rulebased_v1.json", rows)
