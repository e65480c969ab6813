"""The walls between the packages, and that the host's adaptations stay where they belong."""

import ast
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from valor_plugin import torchvision_schemas

ROOT = Path(__file__).parents[2]
HOST = ROOT / "valor_plugin/host"
FILES = [*(ROOT / "reward_sdk").rglob("*.py"), *(ROOT / "valor_plugin").rglob("*.py")]


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that are imported anywhere below."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where an arrow points"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_by(folder: str, *outside: Path) -> dict[str, set[str]]:
    """File -> what it imports, of all files below a folder that are not below `outside`."""
    return {
        str(file.relative_to(ROOT)): set(imports(ast.parse(file.read_text(encoding="utf-8"))))
        for file in FILES
        if file.is_relative_to(ROOT / folder) and not any(map(file.is_relative_to, outside))
    }


def offenders(files: dict[str, set[str]], *forbidden: str) -> dict[str, set[str]]:
    """File -> what it imports from the forbidden packages."""
    found = {
        file: {name for name in names if f"{name}.".startswith(tuple(f"{f}." for f in forbidden))}
        for file, names in files.items()
    }
    return {file: names for file, names in found.items() if names}


def test_the_reward_sdk_knows_neither_the_plugin_nor_the_host():
    files = imported_by("reward_sdk", ROOT / "reward_sdk/server/ray.py")  # for Ray Serve
    assert offenders(files, "valor_plugin", "openrlhf", "ray", "vllm", "deepspeed") == {}


def test_only_the_host_folder_knows_openrlhf_ray_and_vllm():
    files = imported_by("valor_plugin", HOST)
    assert offenders(files, "openrlhf", "ray", "vllm", "deepspeed") == {}


def test_the_wall_test_sees_imports():
    assert offenders(imported_by("valor_plugin/host"), "openrlhf", "ray", "vllm") != {}


@pytest.mark.parametrize("folder", ["llava_med", "data", "evaluation"])
def test_what_lies_below_the_host_imports_nothing_from_it(folder):
    assert offenders(imported_by(f"valor_plugin/{folder}"), "valor_plugin.host") == {}


def test_the_host_folder_imports_nothing_from_above_it():
    above = (
        "valor_plugin.cli",
        "valor_plugin.run.process",
        "valor_plugin.run.sft",
        "valor_plugin.demo",
    )
    assert offenders(imported_by("valor_plugin/host"), *above) == {}


def test_only_the_launcher_starts_processes():
    launcher = ROOT / "valor_plugin/launch.py"
    files = imported_by("valor_plugin", launcher) | imported_by("reward_sdk")
    assert offenders(files, "subprocess", "multiprocessing") == {}


def test_cpu_stand_ins_are_never_imported_with_their_neighbours():
    # imports at the top of a file run with it; those inside of functions only when asked for
    for file in FILES:
        top = [s for s in ast.parse(file.read_text(encoding="utf-8")).body
               if isinstance(s, ast.Import | ast.ImportFrom)]  # fmt: skip
        names = {name for statement in top for name in imports(statement)}
        assert "valor_plugin.host.cpu" not in names, file


def in_a_fresh_process(code: str, **environment: str) -> str:
    plain = {k: v for k, v in os.environ.items() if k != "VALOR_HOST_SETTINGS"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=plain | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


NO_TRACE = """
import sys
import torch
def now():
    return {name: id(value) for name, value in vars(torch.cuda).items() if callable(value)}
before = now()
modules = [name for name in sys.modules if name.startswith(("flash_attn", "openrlhf"))]

import pkgutil, importlib, valor_plugin, reward_sdk
for package in (reward_sdk, valor_plugin):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # these run inside of the host, or of Ray Serve, only
        if module.name not in ("valor_plugin.host.executor", "valor_plugin.host.main",
                               "reward_sdk.server.ray"):
            importlib.import_module(module.name)
from valor_plugin.host import engine, install
install.install()
engine.register()

assert now() == before, "torch.cuda was changed"
assert modules == [n for n in sys.modules if n.startswith(("flash_attn", "openrlhf"))]
assert "ray" not in sys.modules and "vllm" not in sys.modules
"""


def test_outside_of_a_run_cpu_mode_leaves_no_trace():
    pytest.importorskip("torchxrayvision")
    pytest.importorskip("transformers")
    in_a_fresh_process(NO_TRACE)


CUDA_RUN = """
import sys
from valor_plugin.host import vllm_plugin
from valor_plugin.host.settings import HostSettings
assert HostSettings.current().device == "cuda"
engine.register()
assert not {"flash_attn", "valor_plugin.host.cpu"} & set(sys.modules)
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
for name in ("vision_tower.", "vision_tower.vision_model.", "model.vision_tower."):
    found = LlavaForConditionalGeneration.hf_to_vllm_mapper._map_name(f"{name}encoder.layers.0.x")
    assert found == "vision_tower.vision_model.encoder.layers.0.x", found
"""


def test_in_a_run_on_cuda_vllm_learns_both_spellings_of_a_tower_and_nothing_else():
    pytest.importorskip("vllm")
    from valor_plugin.host.settings import HostSettings
    from valor_plugin.recipe import Advantage, Lora

    settings = HostSettings(
        run="r", device="cuda", train=("projector",), lora=Lora(), advantage=Advantage(),
        rewards={"format": {}}, served=None, bounds=(0, 1), log_keys=("format",),
        rollout_images=4, banned_tokens=(3,), seed=1, deterministic=False,
    )  # fmt: skip
    in_a_fresh_process(CUDA_RUN, **settings.environment())


def test_outside_of_a_run_the_hooks_load_nothing_heavy():
    in_a_fresh_process(
        "import sys\nfrom valor_plugin.host import engine, install\n"
        "install.install(); engine.register()\n"
        "assert not {'torch', 'ray', 'vllm', 'openrlhf', 'transformers'} & set(sys.modules)"
    )


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("vllm.general_plugins", "valor_plugin.host.vllm_plugin:register"),
        ("torch.backends", "valor_plugin.torchvision_schemas:define"),
    ],
)
def test_torch_and_vllm_find_their_entry_points(group, target):
    points = [e for e in importlib.metadata.entry_points(group=group) if e.value == target]
    assert len(points) == 1
    assert callable(points[0].load())


@pytest.fixture
def defined(monkeypatch):
    """Which schemas `define` defines, for a build of torch and one of torchvision."""
    torch = pytest.importorskip("torch")
    made: list[str] = []

    class Library:
        def __init__(self, namespace: str, kind: str) -> None:
            self.namespace = namespace

        def define(self, schema: str) -> None:
            made.append(f"{self.namespace}::{schema.partition('(')[0]}")

    def defined(cuda: str | None, hip: str | None, cuda_torchvision: bool) -> list[str]:
        monkeypatch.setattr(torch.library, "Library", Library)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torchvision_schemas, "_cuda_torchvision", lambda: cuda_torchvision)
        monkeypatch.setattr(torchvision_schemas, "_libraries", [])
        torchvision_schemas.define()
        return made

    return defined


@pytest.mark.parametrize(
    ("cuda", "hip", "cuda_torchvision"),
    [(None, None, False), ("13.0", None, True), (None, "6.3", True), ("13.0", None, False)],
)
def test_schemas_are_left_alone_where_the_builds_agree(defined, cuda, hip, cuda_torchvision):
    assert defined(cuda, hip, cuda_torchvision) == []


def test_schemas_are_defined_for_a_cpu_torch_beside_a_cuda_torchvision(defined):
    assert defined(None, None, True) == ["torchvision::nms", "torchvision::qnms"]


@pytest.mark.parametrize(
    ("version", "built_for_cuda"),
    [("cuda = None\n", False), ("cuda = '13.0'\n", True), (None, False)],
)
def test_the_build_of_torchvision_is_read_from_its_version_file(
    tmp_path, monkeypatch, version, built_for_cuda
):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    if version is not None:
        (package / "version.py").write_text(f"__version__ = '1'\n{version}")
    spec = importlib.util.spec_from_file_location("torchvision", package / "__init__.py")
    monkeypatch.setattr(torchvision_schemas, "find_spec", lambda name: spec)
    assert torchvision_schemas._cuda_torchvision() is built_for_cuda


def test_without_torchvision_nothing_is_defined(monkeypatch):
    monkeypatch.setattr(torchvision_schemas, "find_spec", lambda name: None)
    assert not torchvision_schemas._cuda_torchvision()


def test_torchvision_can_be_imported():
    pytest.importorskip("torchxrayvision")
    in_a_fresh_process("import torchvision, torchxrayvision")
