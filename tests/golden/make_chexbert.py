"""Makes `chexbert.json`: what the real f1chexbert package says with the weights of `tiny_bert`.

f1chexbert 0.0.2 does not run with the libraries of this project, so run this in an environment of
its own:

    python -m venv old && old/bin/pip install torch "transformers==4.46.3" "scikit-learn==1.5.2" \\
        "numpy<2" pandas appdirs && old/bin/pip install --no-deps f1chexbert==0.0.2
    cd tests/golden && ../../old/bin/python make_chexbert.py
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from support.tiny_bert import write_chexbert, write_tokenizer

# All reports are our own.
REPORTS = [
    "",
    " ",
    "No pleural effusion.",
    "Small left pleural effusion. The heart is enlarged.",
    "The lungs are clear. Heart size is normal. No pneumothorax.",
    "Possible pneumonia in the right lower lobe.",
    "Mild pulmonary edema with vascular congestion; edema cannot be excluded.",
    "Right rib fracture. Catheter tip in the right lung.",
    "New consolidation, left base. Atelectasis.",
    "NO ACUTE DISEASE",
    "No acute process.\n\nStable  mediastinal\tsilhouette.",
    "Nodule of 1.5 cm in the left upper lobe; a mass may be represented.",
    "Bilateral opacities: pneumonia, edema or atelectasis.",
    "Blunting of the costophrenic angle / small effusion (unchanged).",
    "Cardiomegaly. Interval increase of the left effusion.",
    "xqzv wkjy",
    "Déjà vu \u2013 effusion \u00e9dema \U0001fac1",
    "[SEP] effusion [CLS]",
    "effusion " * 600,
    "the lungs are clear . " * 150,
    "a" * 120,
    "tube tip line catheter tube tip line catheter",
    "50 % of the left lung",
    "no no no no no no",
    "Severe bilateral pneumothorax!",
    "heart",
    "Mild. Moderate. Severe.",
    "lungs lungs lungs clear clear",
]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(XDG_CACHE_HOME=folder, HF_HUB_OFFLINE="1")
        write_chexbert(Path(folder, "chexbert/chexbert.pth"))
        write_tokenizer(Path(folder, "bert-base-uncased"))
        here = Path.cwd()
        os.chdir(folder)  # the package asks for bert-base-uncased, which is a folder here
        from f1chexbert import F1CheXbert

        package = F1CheXbert(device="cpu")
        labels = [package.get_label(text.strip(), mode="classification") for text in REPORTS]
        accuracy, per_sample, all_14, top_5 = package(REPORTS[:-1], REPORTS[1:])
        os.chdir(here)
    golden = {
        "versions": {name: version(name) for name in ("f1chexbert", "transformers", "torch")},
        "reports": REPORTS,
        "labels": labels,
        "neighbours": {
            "accuracy": float(accuracy),
            "exact_match_5": [float(value) for value in per_sample],
            "micro_f1_14": all_14["micro avg"]["f1-score"],
            "macro_f1_14": all_14["macro avg"]["f1-score"],
            "micro_f1_5": top_5["micro avg"]["f1-score"],
        },
    }
    Path("chexbert.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
