"""README.md, CONTRIBUTING.md and docs/: every example runs, every command can be given, every link
leads somewhere. What cannot run here stands in `ELSEWHERE`."""

from __future__ import annotations

import doctest
import json
import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner
from PIL import Image
from support.datasets import film, write_iu_openi, write_json, write_mimic
from support.serving import REPORTS, TEXT, Server

from reward_sdk import Sample, registry
from reward_sdk.audit.cases import read_cases
from reward_sdk.cli import main as reward_sdk
from reward_sdk.config import parse_set, read_set, read_yaml
from reward_sdk.jsonl import Row, read_rows
from reward_sdk.text import wrap_report
from valor_plugin import recipe, records
from valor_plugin.cli import main as openrlhf
from valor_plugin.data.drafts import Choices
from valor_plugin.data.prepare import prepare

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

ELSEWHERE = {
    "reward_sdk.adapters.swift": "ms-swift's pins collide with ours: tests/contract/test_swift.py",
    "reward_sdk.adapters.nemo_gym": "so do nemo-gym's: tests/contract/test_nemo_gym.py",
    "pkg://reward_sdk.adapters.verl": "verl's own options: tests/contract/test_verl.py",
    "[project.entry-points": "a package of one's own: tests/reward_sdk/test_own_rewards.py",
}
"""What an example holds -> why it cannot run here, and where it does."""
RUN = {"list", "labels", "score", "audit", "bench", "stacks"}
"""Commands of `reward-sdk` that are run; the others' options are checked."""


@dataclass(frozen=True)
class Block:
    """A fenced block: the page and line where it begins, its language, its text."""

    where: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = TEXTS[page]
    return [
        Block(f"{page.name}:{text.count(chr(10), 0, found.start()) + 1}", found[1], found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]


def examples(*languages: str) -> list:
    """The blocks in these languages that can run here, as a test's parameters."""
    return [
        pytest.param(block, id=block.where)
        for block in BLOCKS
        if block.language in languages and not any(part in block.text for part in ELSEWHERE)
    ]


def commands() -> list:
    """The lines of shell blocks, and indented ones that are commands, as a test's parameters."""
    found = {line: block.where for block in BLOCKS if block.language == "sh"
             for line in block.text.splitlines()}  # fmt: skip
    for page, text in TEXTS.items():
        for line in re.findall(r"^ {4}((?:\S+/)?(?:openrlhf|reward-sdk|make) \S.*)", text, re.M):
            found[re.sub(r"\s+#.*", "", line)] = page.name
    return [pytest.param(line, id=f"{where} {line}") for line, where in found.items()]


@pytest.fixture
def there(tmp_path, monkeypatch, physionet) -> Path:
    """The current folder of whoever tries the examples, with the files that they name."""
    monkeypatch.chdir(tmp_path)
    rewards = "rewards:\n  rouge_l: {weight: 0.9}\n  format: {weight: 0.1}\n"
    (tmp_path / "rewards.yaml").write_text(rewards)
    rows = []
    for i, report in enumerate(REPORTS):
        Image.new("L", (40, 40), 40 * i).save(tmp_path / f"s{i}.png")
        response = wrap_report(REPORTS[i - 1])
        rows.append(
            {"id": f"s{i}", "image": f"s{i}.png", "reference": report, "response": response}
        )
    for name in ("reports.jsonl", "studies.jsonl", "test.jsonl", "iu.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    prepared = physionet / "data/mimic-cxr/test.jsonl"
    for name in ("mimic-cxr-2.1.0-test-set-labeled.csv", "openi_gld_std14.csv"):
        studies = ["0", "1", *(row.id for row in read_rows(prepared) if isinstance(row, Row))]
        gold = "".join(f"{study},1\n" for study in studies)
        (tmp_path / name).write_text(f"study_id,Cardiomegaly\n{gold}", encoding="utf-8")
    for row in map(json.loads, (physionet / "data/mimic-cxr/train.jsonl").open()):
        patients = f"subject_id\n{row['patient']}\n"
    (tmp_path / "MS_CXR_Local_Alignment_v1.1.0.csv").write_text(patients)
    [cases] = [block.text for block in blocks(ROOT / "docs/audit.md") if block.language == "json"]
    (tmp_path / "cases.json").write_text(cases, encoding="utf-8")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "examples/no_priors.py", tmp_path)
    runs = ("runs/valor-sft", "runs/valor-stage2")
    for folder in ("FOLDER", "llava-med-v1.5-mistral-7b", *runs):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "FOLDER/film.png").write_bytes(film("PNG"))
    step = records.Step(
        step=1, time=0.0, reward=0.5, parts={}, unscored=0.0, tied=0.1, kl=0.01, length=30.0,
        truncated=0.0, seconds={}, synced={},
    )  # fmt: skip
    records.append(tmp_path / "runs/valor-stage2" / records.STEPS, step)
    tuned = records.SupervisedStep(1, 0.0, 0.5, 0.0, 1.0, 9, 1.0)
    records.append(tmp_path / "runs/valor-sft" / records.STEPS, tuned)
    write_iu_openi(tmp_path / "openi", 3)
    write_json(tmp_path / "annotation.json", {"train": [{"id": f"CXR{i}_IM-1"} for i in (1, 2, 3)]})
    (tmp_path / "physionet.org").symlink_to(physionet / "physionet.org")
    shutil.copytree(physionet / "data", tmp_path / "data")
    return tmp_path


@pytest.fixture(scope="module")
def physionet(tmp_path_factory) -> Path:
    """A folder with MIMIC-CXR as `wget -r` leaves it, made up, and what was prepared of it."""
    folder = tmp_path_factory.mktemp("physionet")
    write_mimic(folder, 40)
    prepare("mimic-cxr", folder / "physionet.org", folder / "data/mimic-cxr", Choices(), 1)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("fastapi")
    with Server(tmp_path_factory.mktemp("server"), TEXT) as running:
        yield running.url


@pytest.fixture
def own_names():
    """Names of rewards that examples register are free before, and afterwards."""

    def take() -> dict[str, Any]:
        names = registry._factories.keys() - registry._BUILT_IN.keys()
        return {name: registry._factories.pop(name) for name in names}

    others = take()
    yield
    take()
    registry._factories.update(others)


class Trained(list):
    """What a stand-in for TRL's trainer was made with, once it has trained."""

    def trainer(self, *arguments: Any) -> Trained:
        self[:] = arguments
        return self

    def train(self) -> None:
        _, funcs, args, _ = self
        assert len(funcs) == len(args.reward_weights)


@pytest.fixture
def trained(monkeypatch) -> Trained:
    """TRL with its own GRPOConfig, on a CPU, and a stand-in for its trainer."""
    config = pytest.importorskip("trl.trainer.grpo_config")
    trained = Trained()
    trl: Any = ModuleType("trl")
    trl.GRPOConfig = partial(config.GRPOConfig, use_cpu=True, bf16=False)
    trl.GRPOTrainer = trained.trainer
    monkeypatch.setitem(sys.modules, "trl", trl)
    return trained


def execute(text: str, **names: Any) -> dict[str, Any]:
    """Runs an example with the names that it takes for granted; what it defines."""
    exec(compile(text, "an example", "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("example", examples("python"))
@pytest.mark.usefixtures("own_names")
def test_an_example_in_python_runs(example, there, request):
    text = example.text
    if "http://node" in text:
        text = re.sub(r"http://node\d:8000", request.getfixturevalue("server"), text)
    trained = request.getfixturevalue("trained") if "GRPOTrainer" in text else None
    samples = [Sample(wrap_report(REPORTS[0]), REPORTS[1])]
    execute(text, samples=samples, model="a model", dataset=[])
    assert trained is None or trained


MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for package in ("reward_sdk", "valor_plugin")
    for file in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_an_example_in_a_docstring_gives_what_it_says(module):
    found = doctest.testmod(import_module(module))
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("example", examples("yaml"))
def test_an_example_in_yaml_is_a_recipe_or_a_set(example, there):
    file = there / "example.yaml"
    file.write_text(example.text, encoding="utf-8")
    if "stage" not in read_yaml(file, "example"):
        assert parse_set(*read_set(file), given={"image_text": ("calibration",)})
        return
    pytest.importorskip("openrlhf")
    from valor_plugin.host.command import host_command
    from valor_plugin.run.folder import RunFolder

    assert host_command(recipe.load_recipe(file), RunFolder(there / "run"), "cuda").options


@pytest.mark.parametrize("example", examples("json"))
def test_an_example_in_json_is_rows_or_ranking_cases(example, there):
    if example.text.startswith("["):
        assert read_cases(there / "cases.json")
        return
    (there / "example.jsonl").write_text(example.text, encoding="utf-8")
    assert all(isinstance(row, Row) for row in read_rows(there / "example.jsonl"))


@pytest.mark.parametrize("line", commands())
def test_a_command_can_be_given(line, there):
    program, *words = shlex.split(line)
    program = Path(program).name
    if program == "make":
        assert words[0] in targets()
    elif program == "pip":
        extras = [extra for word in words for extra in re.findall(r"\[(.*)\]", word)]
        assert words[0] == "install"
        assert set(",".join(extras).split(",")) - {""} <= PROJECT["optional-dependencies"].keys()
    elif program == "reward-sdk" and words[0] in RUN:
        ran = CliRunner().invoke(reward_sdk, words)
        assert ran.exit_code == 0, ran.output
    elif program == "openrlhf" and words[0] == "prepare":
        ran = CliRunner().invoke(openrlhf, [*words, "--processes", "1"])
        assert ran.exit_code == 0, ran.output
    else:
        takes({"reward-sdk": reward_sdk, "openrlhf": openrlhf}[program], words)


def targets() -> list[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.findall(r"^\.PHONY: (.*)", makefile, re.MULTILINE)[0].split()


def test_every_target_of_make_that_is_named_is_there():
    named = {name for text in TEXTS.values() for name in re.findall(r"`make ([\w-]+)`", text)}
    assert named
    assert named <= set(targets())


def takes(group: click.Group, words: list[str]) -> None:
    """Parses a command line as the program does; a recipe of ours that it names is there."""
    name, command, rest = group.resolve_command(click.Context(group), words)
    assert command is not None
    given = command.make_context(name, list(rest)).params
    named = given.get("path")
    if name == "train" and "/" in named:
        assert (ROOT / named).is_file()


def test_the_readme_is_read_in_five_minutes():
    assert len(TEXTS[ROOT / "README.md"].split()) <= 1100


def test_every_block_says_its_language():
    assert {block.language for block in BLOCKS} <= {"python", "yaml", "json", "sh", "text"}


@pytest.mark.parametrize("part", ELSEWHERE)
def test_what_runs_elsewhere_is_still_there(part):
    assert any(part in block.text for block in BLOCKS)
    [test] = re.findall(r"tests/\S+\.py", ELSEWHERE[part])
    assert (ROOT / test).is_file()


def test_a_text_block_is_one_that_runs_elsewhere():
    assert examples("text") == []


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index_and_links_up():
    index = TEXTS[ROOT / "docs/README.md"]
    for page in PAGES[2:]:
        if page.name != "README.md":
            assert f"({page.name})" in index
            assert "(README.md)" in TEXTS[page]


def test_every_key_of_a_recipe_is_on_its_page():
    text = TEXTS[ROOT / "docs/recipes.md"]
    sections = {"model": recipe.Model, "data": recipe.Data, "advantage": recipe.Advantage,
                "sft": recipe.Sft, "model.lora": recipe.Lora}  # fmt: skip
    keys = {f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}
    keys |= recipe.Recipe.model_fields.keys()
    assert {key for key in keys - sections.keys() if f"`{key}`" not in text} == set()


def test_every_reward_is_on_its_page():
    text = TEXTS[ROOT / "docs/rewards.md"]
    assert {name for name in registry._BUILT_IN if f"`{name}`" not in text} == set()


def test_the_extras_are_those_of_the_page():
    table = TEXTS[ROOT / "docs/operations.md"].partition("| extra |")[2].partition("\n\n")[0]
    named = " ".join(row.split("|")[1] for row in table.splitlines()[2:])
    assert {*re.findall(r"`(\w+)`", named), "dev"} == PROJECT["optional-dependencies"].keys()


@pytest.mark.slow
@pytest.mark.usefixtures("own_names")
def test_the_notebook_runs_and_is_stored_without_outputs(there, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((ROOT / "examples/rewards.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    names = {"__name__": "__main__"}
    for cell in cells:
        exec(compile("".join(cell["source"]), "a cell", "exec", dont_inherit=True), names)
    assert (there / "audit.png").is_file()
