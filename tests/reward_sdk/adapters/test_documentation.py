from pathlib import Path

import pytest

from reward_sdk.adapters import FIELDS, STACKS, describe, page

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", STACKS)
def test_an_adapter_s_docstring_says_everything(name):
    stack = describe(name)
    assert tuple(stack.facts) == FIELDS
    assert all(len(words) > 5 for words in stack.facts.values())
    assert 0 < len(stack.example.splitlines()) <= 5


def test_every_adapter_is_described():
    folder = ROOT / "reward_sdk/adapters"
    shared = {"__init__", "scorer", "columns", "rows"}
    assert {path.stem for path in folder.glob("*.py")} - shared == set(STACKS)


def test_the_page_is_what_the_code_says():
    assert (ROOT / "docs/stacks.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("name", STACKS)
def test_the_pinned_package_is_the_version_that_is_named(name):
    package, version = describe(name).facts["Run for real"].split(",")[0].split()
    own = ROOT / f"requirements/contract/{name}.txt"
    pins = (own if own.exists() else ROOT / "requirements/cpu.txt").read_text().splitlines()
    assert f"{package}=={version}" in [pin.replace("_", "-") for pin in pins]
