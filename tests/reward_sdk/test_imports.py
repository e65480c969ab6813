"""The base install has no torch, so nothing but models may want it at import."""

import json
import pkgutil
import subprocess
import sys
from importlib.resources import files

import pytest

import reward_sdk

HEAVY = {
    "torch", "transformers", "torchxrayvision", "fastapi", "starlette", "uvicorn",
    "prometheus_client", "radgraph", "nltk", "bert_score", "matplotlib", "jinja2", "openrlhf",
    "ray", "vllm", "trl", "valor_plugin",
}  # fmt: skip
ON_DEMAND = {  # imported by what loads their weights, or by `reward-sdk serve` or `bench`
    "reward_sdk.models.bert", "reward_sdk.models.xray_expert", "reward_sdk.models.dygie",
    "reward_sdk.models.radgraph", "reward_sdk.models.chexbert", "reward_sdk.models.weights",
    "reward_sdk.commands.networks",
    "reward_sdk.server.intake", "reward_sdk.server.page", "reward_sdk.server.ray",
    "reward_sdk.server.routes",
    "reward_sdk.server.run", "reward_sdk.server.security", "reward_sdk.server.service",
    "reward_sdk.server.telemetry",
}  # fmt: skip
LIGHT = [
    module.name
    for module in pkgutil.walk_packages(reward_sdk.__path__, "reward_sdk.")
    if module.name not in ON_DEMAND
]


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in a fresh process after the statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([m for m in sys.modules]))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return {name.partition(".")[0] for name in json.loads(output)}


@pytest.mark.parametrize("module", ["reward_sdk", *LIGHT])
def test_importing_it_loads_nothing_heavy(module):
    assert loaded_by(f"import {module}") & HEAVY == set()


def test_scoring_a_text_reward_loads_nothing_heavy():
    code = """
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Sample
sample = Sample("<report> Clear. </report>", reference="Clear.")
RewardSet.from_config({"format": {}, "rouge_l": {}, "findings_f1": {}}).score([sample])
"""
    assert loaded_by(code) & HEAVY == set()


def test_importing_the_package_loads_no_web_client_and_no_numpy():
    assert loaded_by("import reward_sdk") & {"numpy", "httpx", "pydantic", "PIL"} == set()


@pytest.mark.parametrize("name", reward_sdk.__all__)
def test_the_face_of_the_package_shows_every_name_and_loads_nothing_heavy(name):
    assert name in dir(reward_sdk)
    loaded = loaded_by(f"from reward_sdk import {name}\nassert {name}.__name__ == {name!r}")
    assert loaded & HEAVY == set()


def test_samples_are_there_without_pydantic():
    names = "ImageRef, Outcome, Sample, Score"
    assert loaded_by(f"from reward_sdk import {names}") & {"numpy", "pydantic", "PIL"} == set()


def test_a_name_that_the_package_has_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Rewards'"):
        _ = reward_sdk.Rewards


def test_the_package_says_that_it_is_typed():
    assert files(reward_sdk).joinpath("py.typed").is_file()
