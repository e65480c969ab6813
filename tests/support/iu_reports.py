"""The IU-XRay reports, read from torchxrayvision's wheel, and how their gold labels are met."""

import csv
import tarfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from reward_sdk.models import Labeler
from support.shared import DATA

GOLD = DATA / "negbio-openi-gold/openi_gld_std14.csv"
COLUMNS = {  # the gold's names of our observations
    "Atelectasis": ["Atelectasis"],
    "Cardiomegaly": ["Cardiomegaly"],
    "Pleural Effusion": ["Effusion"],
    "Consolidation": ["Consolidation"],
    "Pneumothorax": ["Pneumothorax"],
    "Edema": ["Edema"],
    "Pneumonia": ["Pneumonia"],
    "Lung Lesion": ["Mass", "Nodule"],
    "Pleural Other": ["Pleural_Thickening"],
}


@cache
def iu_sections() -> dict[str, tuple[str, str]]:
    """Report id ("CXR1") -> its FINDINGS and IMPRESSION, "" where it has none. Never the headings,
    which are the gold. Empty without torchxrayvision."""
    spec = find_spec("torchxrayvision")  # found, not imported: importing it takes seconds
    if spec is None or spec.origin is None:
        return {}
    texts = {}
    with tarfile.open(Path(spec.origin).parent / "data/NLMCXR_reports.tgz") as archive:
        for member in archive:
            if (file := archive.extractfile(member)) and member.name.endswith(".xml"):
                root = ElementTree.parse(file).getroot()
                sections = (
                    root.findtext(f".//AbstractText[@Label='{label}']") or ""
                    for label in ("FINDINGS", "IMPRESSION")
                )
                texts[root.find(".//uId").attrib["id"]] = tuple(sections)
    return texts


def iu_findings() -> dict[str, str]:
    """Report id -> its FINDINGS, where it has some."""
    return {uid: findings for uid, (findings, _) in iu_sections().items() if findings}


def gold_counts(labeler: Labeler) -> dict[str, tuple[int, int, int]]:
    """Observation -> (rightly found, found, in the gold), positives only, on the gold's reports
    that have FINDINGS or an IMPRESSION."""
    with GOLD.open() as file:
        gold = {row["filename"]: row for row in csv.DictReader(file)}
    texts = {
        uid: "\n\n".join(sections)
        for uid, sections in iu_sections().items()
        if uid in gold and any(sections)
    }
    labels = dict(zip(texts, labeler(list(texts.values())), strict=True))
    counts = {}
    for observation, columns in COLUMNS.items():
        found = {uid for uid in texts if labels[uid][observation] == 1}
        expected = {uid for uid in texts if any(gold[uid][column] == "1" for column in columns)}
        counts[observation] = len(found & expected), len(found), len(expected)
    return counts
