import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.hostrun import openrlhf

from valor_plugin import doctor
from valor_plugin.host.seams import Seam


def findings(folder: Path) -> dict[str, doctor.Check]:
    return {finding.what: finding for finding in doctor.model(str(folder))}


def changed(tiny_model: Path, folder: Path, how: str) -> Path:
    """A copy of the model with one thing different."""
    shutil.copytree(tiny_model, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    tensors, content = load_file(weights), json.loads(config.read_text())
    match how:
        case "names that transformers writes":
            tensors = {name.replace(".vision_model.", "."): t for name, t in tensors.items()}
            assert not any("vision_model" in name for name in tensors)
        case "names that transformers has in memory":
            tensors = {
                f"model.{name}".replace("model.language_model.lm_head", "lm_head").replace(
                    "model.language_model.model.", "model.language_model."
                ): tensor
                for name, tensor in tensors.items()
            }
            assert "model.language_model.embed_tokens.weight" in tensors
        case "a tensor is missing":
            tensors.pop("multi_modal_projector.linear_2.bias")
        case "a tensor too many":
            tensors["multi_modal_projector.linear_3.bias"] = torch.zeros(3)
        case "another image token":
            content["image_token_index"] = 5
        case "another width":
            content["text_config"]["intermediate_size"] = 300
        case "no layer to look at":
            content["vision_feature_layer"] = -9
        case "one token too few":
            processor = json.loads((folder / "processor_config.json").read_text())
            processor["num_additional_image_tokens"] = 0
            (folder / "processor_config.json").write_text(json.dumps(processor))
        case "another image size":
            content["vision_config"]["image_size"] = 64
        case "no chat template":
            (folder / "chat_template.jinja").unlink()
        case "no processor":
            (folder / "processor_config.json").unlink()
        case "the original's format":
            content["model_type"] = "llava_mistral"
    save_file(tensors, weights, metadata={"format": "pt"})
    config.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "how",
    ["nothing", "names that transformers writes", "names that transformers has in memory"],
)
def test_a_model_that_will_load_has_nothing_wrong(how, tiny_model, tmp_path):
    found = findings(changed(tiny_model, tmp_path / "model", how))
    assert {name: finding.ok for name, finding in found.items()} == dict.fromkeys(
        ("files", "tensors", "image token", "image", "chat template"), True
    )


@pytest.mark.parametrize(
    ("how", "what", "says"),
    [
        ("a tensor is missing", "tensors", "1 are missing, e.g. multi_modal_projector.linear_2"),
        ("a tensor too many", "tensors", "1 have no place"),
        ("another image token", "image token", "'<image>' is 3, the model's 5"),
        ("another image size", "image", "32 pixels and 16 tokens"),
        ("another width", "tensors", "the configuration wants (64, 300)"),
        ("no layer to look at", "image", "of layer -9"),
        ("one token too few", "image", "15 tokens"),
        ("no chat template", "chat template", "none"),
        ("no processor", "files", "no processor_config.json"),
        ("the original's format", "files", "openrlhf convert"),
    ],
)
def test_what_is_wrong_with_a_model_is_named(how, what, says, tiny_model, tmp_path):
    found = findings(changed(tiny_model, tmp_path / "model", how))
    assert found[what].ok is False
    assert says in found[what].detail
    wrong = {name for name, finding in found.items() if not finding.ok}
    assert wrong - {what} <= ({"tensors"} if how == "another image size" else set())


def test_the_command_looks_at_packages_seams_and_model(tiny_model):
    pytest.importorskip("vllm")
    done = openrlhf("doctor", str(tiny_model))
    assert done.returncode == 0, done.stdout
    assert "WRONG" not in done.stdout
    for words in (
        "openrlhf: 0.11.2",
        "entry point vllm.general_plugins: registered",
        "always replaced by host/advantage:rank_groups in trainer processes",
        "chat template: there",
    ):
        assert words in done.stdout


def test_a_package_that_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(doctor.PURPOSES, "no-such-package", "stage none")
    found = {finding.what: finding for finding in doctor.packages()}
    assert found["no-such-package"].ok is False
    assert found["no-such-package"].detail == "not installed: stage none needs it"


def test_of_every_package_that_was_tested_is_known_what_needs_it():
    assert doctor.TESTED.keys() <= doctor.PURPOSES.keys()


def test_a_seam_that_is_gone_is_said(monkeypatch):
    seam = Seam("openrlhf.models.actor:Actor.no_such_method", "policy:train_parts", "policy")
    monkeypatch.setattr(doctor, "SEAMS", (seam,))
    found = {check.what: check for check in doctor.seams()}
    assert found[seam.target].ok is False
    assert "not there" in found[seam.target].detail
