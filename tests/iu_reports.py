"""The FINDINGS of the IU-XRay reports, read from torchxrayvision's wheel."""

import tarfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree


@cache
def iu_findings() -> dict[str, str]:
    """Report id ("CXR1") -> its FINDINGS, where it has some; empty without torchxrayvision."""
    spec = find_spec("torchxrayvision")  # found, not imported: importing it takes seconds
    if spec is None or spec.origin is None:
        return {}
    texts = {}
    with tarfile.open(Path(spec.origin).parent / "data/NLMCXR_reports.tgz") as archive:
        for member in archive:
            if (file := archive.extractfile(member)) and member.name.endswith(".xml"):
                root = ElementTree.parse(file).getroot()
                if text := root.findtext(".//AbstractText[@Label='FINDINGS']"):
                    texts[root.find(".//uId").attrib["id"]] = text
    return texts
