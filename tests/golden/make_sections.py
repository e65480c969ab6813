"""Makes `sections.json`: how MIMIC-CXR's own script cuts reports that we wrote in MIMIC's layout.

    git clone https://github.com/MIT-LCP/mimic-cxr && git -C mimic-cxr checkout 3190146
    cd tests/golden && python make_sections.py ../../mimic-cxr/txt

The names and texts of sections are those of `section_parser.section_text`, the last of a name; the
conclusions of the 54 studies with rules of their own are what `create_section_files.py` writes.
"""

import csv
import json
import sys
import tempfile
from pathlib import Path

HEADINGS = (
    """
IMPRESSION|COMPARISON|INDICATION|FINDINGS|EXAMINATION|TECHNIQUE|HISTORY|COMPARISONS|CLINICAL HISTORY
REASON FOR EXAMINATION|NOTIFICATION|REASON FOR EXAM|CLINICAL INFORMATION|EXAM|CLINICAL INDICATION
CONCLUSION|CHEST, TWO VIEWS|RECOMMENDATION(S)|TYPE OF EXAMINATION|REFERENCE EXAM|PATIENT HISTORY
ADDENDUM|COMPARISON EXAM|DATE|COMMENT|FINDINGS AND IMPRESSION|WET READ|COMPARISON FILM
RECOMMENDATIONS|FINDINGS/IMPRESSION|RECOMMENDATION|WETREAD|IMPRESSON|IMPRRESSION|IMORESSION
IMPRESSOIN|IMPRSSION|IMPRESION|IMPERSSION|MPRESSION|IMPESSION|FINDINGS/ IMPRESSION|FINDING|FINDINS
FINDINDGS|FINDGINGS|FINDNGS|FINDNINGS|FINIDNGS|IDICATION|REFERENCE FINDINGS|COMPARISION|COMPARSION
COMPARRISON|COMPARISIONS|PREAMBLE
CHEST|PORTABLE AP|PA AND LATERAL|LATERAL AND PA|AP AND LATERAL|LATERAL AND AP|FRONTAL AND OBLIQUE
TWO VIEWS|FRONTAL VIEW|PA VIEW|AP VIEW|ONE VIEW|LATERAL VIEW|BONE WINDOW|FRONTAL UPRIGHT|RIBS
FRONTAL SEMI-UPRIGHT|PA AND LAT|SINGLE VIEW|UPRIGHT|LATERAL|NOTE|REASON FOR STUDY|INDICATIONS
FINAL IMPRESSION|OTHER FINDINGS|IMPRESSION AND FINDINGS|RELEVANT HISTORY|HISTORY AND COMPARISON
COMPARISON FINDINGS|CHEST HISTORY|FIRST ADDENDUM|REPORT|DR|PORTABLE CHEST, COMPARISON|(CHEST)
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
"""Spellings that the script knows, all but two; kinds of views; some that it does not know."""

SLIPS = ["NDICATION", "PFI"]
"""Spellings that we read otherwise."""


def in_layout(report: str) -> str:
    """A report with MIMIC's title, and a space at the start of every line."""
    return f"{'':33}FINAL REPORT\n" + "".join(f" {line}\n" for line in report.split("\n"))


def under(heading: str) -> str:
    return in_layout(
        f"TECHNIQUE:  Films.\n\n{heading}:  Mild cardiomegaly and a small effusion on\nthe left."
        "\n\nNo pneumothorax.\n\nNOTIFICATION:  None."
    )


PROSE = "The lungs are clear.  No pleural effusion or\npneumothorax is seen.  Heart size is normal."
REPORTS = [
    in_layout(report)
    for report in (
        f"INDICATION:  Cough.\n\nFINDINGS:\n\n{PROSE}\n\nIMPRESSION:  Normal chest.",
        f"EXAMINATION:  CHEST (PA AND LAT)\n\nFINDINGS: \n\n{PROSE}\n\nIMPRESSION: \n\nNormal.",
        f"CHEST, PA LATERAL:\n\nINDICATION:   Fever.\n\nFINDINGS:  {PROSE}",
        f"CHEST, PA LATERAL:\nINDICATION:   Fever.\n\nFINDINGS:  {PROSE}",
        f"FINDINGS:\nINDICATION: Fever.\n{PROSE}",
        f"FINDINGS: \n\nFINDINGS:  {PROSE}",
        f"FINDINGS:  {PROSE}\n\nFINDINGS: \n",
        f"FINDINGS:  {PROSE}\n\nFINDINGS:  Small effusion.",
        "IMPRESSION:  First reading.\n\nADDENDUM:  Corrected.\n\nIMPRESSION:  Second reading.",
        f"ADDENDUM:  Side corrected.\n{'_' * 60}\n\nFINDINGS:  {PROSE}\n\nIMPRESSION:  Normal.",
        f"{PROSE}",
        f"HISTORY:  Fever.\n\n{PROSE}\n\nThe spine is straight.",
        f"COMPARISON:  ___.\n\n{PROSE}",
        f"COMPARISON:  {PROSE}",
        f"AP CHEST, 9:45 A.M., ___\n\nHISTORY:  Line placement.\n\nIMPRESSION:  {PROSE}",
        f"PORTABLE CHEST RADIOGRAPH: {PROSE}",
        f"INDICATION: Cough. FINDINGS: Clear. IMPRESSION: Normal.\n\n{PROSE}",
        "INDICATION:  Cough.  COMPARISON:  None.\nFINDINGS:  Clear.\nIMPRESSION:  Normal.",
        f"Indication:  Cough.\n\nFindings:  {PROSE}\n\nImpression:  Normal.",
        "IMPRESSION:  1.  No effusion.\n 2.  Cardiomegaly.\n\n 3.  LINES: placed.\nLINES: removed.",
        "IMPRESSION:\n",
        "IMPRESSION: ",
        "FINDINGS:",
        "INDICATION:  ",
        f"CHEST X-RAY (AP/LATERAL):  {PROSE}",
        f"CHEST 2 VIEWS:  {PROSE}\n\nCONCLUSION:  Normal.",
        f"FINDINGS :  {PROSE}\n\n IMPRESSION:  Indented.",
        f"   FINDINGS:  {PROSE}",
        "FINDINGS:Clear.\nIMPRESSION:\tNormal.",
        f"WET READ: ___ ___ 9:45 PM\n Small effusion.\n{'_' * 60}\nFINDINGS: {PROSE}",
        f"RECOMMENDATION(S):  Follow up.\n\nNOTIFICATION:  Dr. ___ at ___.\n\n{PROSE}",
        "FINDINGS:  DEVICES: none.\nLUNGS: clear.\nHEART: large.\n\nIMPRESSION: Large heart.",
        "TECHNIQUE:  One film.\n\n\n\nTwo empty lines.\n\nThe end.",
        "FINDINGS:  \n\n\nIMPRESSION:  \n\nTECHNIQUE:  One film.\n\nClear lungs.",
        "HISTORY:  A.\n\nHISTORY:  B.\n\nHISTORY: ",
        "IMPRESSION: Clear.\n\nRECOMMENDATION(S): None.\n\nIMPRESSION: ",
        "(FINDINGS):  Clear.\n\nIMPRESSION/RECOMMENDATION:  Normal.\n\nI-M: x\n\n,/-:  y",
        "IMPRESSION:  Clear.\nCHEST.  IMPRESSION:  Normal.\n REASON: indented",
    )
]
REPORTS += [
    "",
    " \n \n",
    "No layout at all.",
    "FINDINGS: a heading on the first line.\nIMPRESSION: no space before it.",
    "\n FINDINGS:  a heading on the second line.\n",
    REPORTS[0].replace("\n", "\r\n"),
    REPORTS[11].replace("\n", "\r\n"),
    REPORTS[0].replace("\n", "\r"),
    REPORTS[0].strip(),
    REPORTS[0].replace("\n ", "\n"),
    REPORTS[11].replace("\n \n", "\n\n"),
    REPORTS[0].replace("\n ", "\n\t"),
    REPORTS[0].replace("clear", "cl\u00e9ar\u2028IMPRESSION:\u00a0 x"),
]
LONG = in_layout(
    "INDICATION:  Cough.\n\nEXAMINATION:  Chest.\n\nTECHNIQUE:  Films.\n\nHISTORY:  Pneumonia.\n"
    "\nNOTE:  Small effusion.\n\nINDICATION:  Heart is large.\n\nRECOMMENDATION(S):  None.\n\n"
    + "\n".join(f"Line {i} of a long report." for i in range(30))
)
"""A report with every section that is named for a study, long enough for every offset."""


def main(txt: Path) -> None:
    sys.path.insert(0, str(txt))
    import create_section_files
    import section_parser

    def cut(report: str) -> dict[str, object]:
        # As the script's open(..., "r") gives it.
        text = report.replace("\r\n", "\n").replace("\r", "\n")
        texts, names, _ = section_parser.section_text(text)
        sections = {name: section.strip() for name, section in zip(names, texts, strict=True)}
        return {"text": report, "sections": sections}

    studies = sorted(study for rules in section_parser.custom_mimic_cxr_rules() for study in rules)
    with tempfile.TemporaryDirectory() as folder:
        reports = Path(folder, "files", "p10", "p10000032")
        reports.mkdir(parents=True)
        for study in studies:
            (reports / f"{study}.txt").write_text(LONG, encoding="utf-8")
        create_section_files.main(
            ["--reports_path", f"{folder}/files", "--output_path", f"{folder}/out", "--no_split"]
        )
        with Path(folder, "out", "mimic_cxr_sections.csv").open(newline="") as file:
            conclusions = dict(sorted(csv.reader(file)))
    golden = {
        "version": "MIT-LCP/mimic-cxr 3190146",
        "reports": [cut(text) for text in [*map(under, HEADINGS), *REPORTS, LONG]],
        "slips": {heading: cut(under(heading)) for heading in SLIPS},
        "long": LONG,
        "conclusions": conclusions,
    }
    Path("sections.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
