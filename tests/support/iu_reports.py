"""The IU-XRay reports, read from torchxrayvision's wheel, and how their gold labels are met."""

import tarfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from reward_sdk.commands.labels import read_gold
from reward_sdk.metrics import Agreement, label_agreement
from reward_sdk.models import Labeler
from support.shared import DATA

GOLD = DATA / "negbio-openi-gold/openi_gld_std14.csv"


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


def gold_agreement(labeler: Labeler) -> dict[str, Agreement]:
    """Observation, or how several are pooled -> agreement of positives with the gold, on its
    reports that have FINDINGS or an IMPRESSION."""
    gold = read_gold(GOLD)
    texts = {
        uid: "\n\n".join(sections)
        for uid, sections in iu_sections().items()
        if uid in gold.labels and any(sections)
    }
    found = labeler(list(texts.values()))
    expected = [gold.labels[uid] for uid in texts]
    return label_agreement(found, expected, gold.observations, "negative")
