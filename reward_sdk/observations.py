"""The 14 CheXpert observations: the vocabulary that labelers, experts and clinical rewards share.

Always index by name. The order below is that of the CheXbert heads; the CheXpert data set, the
MIMIC-CXR tables and torchxrayvision each use another one.
"""

from collections.abc import Mapping

OBSERVATIONS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)

CHEXPERT_5 = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
"""The five observations of the CheXpert competition, a usual subset in papers."""

Labels = Mapping[str, int | None]
"""One report's labels: observation -> 1 positive, 0 negative, -1 uncertain, None not mentioned."""
