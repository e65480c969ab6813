"""The walls between the packages, and that the host's adaptations stay where they belong."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from valor_plugin import torchvision_schemas
from valor_plugin.host import policy
from valor_plugin.host.seams import Seam, SeamError
from valor_plugin.host.settings import HostSettings
from valor_plugin.recipe import Advantage, Lora

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


ROOMS = (
    "torchvision_schemas", "records", "llava_med", "data", "recipe", "host", "run", "train",
    "chain", "evaluation", "demo", "doctor", "cli",
)  # fmt: skip
"""The rooms of the plugin from the ground up: each imports from those before it, and from itself.
"""


def room(module: str) -> int | None:
    """The floor of a module of the plugin; None for any other."""
    package, _, name = module.partition(".")
    name = name.partition(".")[0]
    return ROOMS.index(name) if package == "valor_plugin" and name in ROOMS else None


def test_every_file_of_the_plugin_stands_in_a_room():
    found = {path.stem if path.is_file() else path.name
             for path in (ROOT / "valor_plugin").iterdir()
             if "__" not in path.name and path.name != "py.typed"}  # fmt: skip
    assert found == set(ROOMS)


def test_arrows_point_down():
    up = {}
    for file, names in imported_by("valor_plugin").items():
        own = room(file.removesuffix(".py").replace("/", "."))
        above = {name for name in names if (floor := room(name)) is not None and own is not None
                 and floor > own}  # fmt: skip
        if above:
            up[file] = above
    assert up == {}


def test_no_modules_import_each_other_in_a_circle():
    modules = {
        str(f.relative_to(ROOT))[:-3].replace("/", ".").removesuffix(".__init__") for f in FILES
    }

    def target(name: str) -> str | None:
        while name and name not in modules:  # `from package.module import name`
            name = name.rpartition(".")[0]
        return name if "." in name else None

    arrows = {
        file[:-3].replace("/", ".").removesuffix(".__init__"): {
            found for name in names if (found := target(name)) is not None
        }
        for file, names in (imported_by("valor_plugin") | imported_by("reward_sdk")).items()
    }
    for start in arrows:
        seen, open_ = set(), arrows[start] - {start}
        while open_:
            seen |= open_
            open_ = set().union(*(arrows.get(each, set()) for each in open_)) - seen
        assert start not in seen, start


def test_only_the_run_starts_processes():
    launcher = ROOT / "valor_plugin/run/process.py"
    studies = ROOT / "valor_plugin/data/prepare.py"  # which completes studies on every core
    files = imported_by("valor_plugin", launcher, studies) | imported_by("reward_sdk")
    assert offenders(files, "subprocess", "multiprocessing") == {}


def test_nobody_outside_of_the_host_names_one_of_its_files():
    for file in FILES:
        if not file.is_relative_to(HOST):
            assert '"_actor"' not in file.read_text(encoding="utf-8"), file


def test_nobody_reads_facts_out_of_a_printed_log():
    files = imported_by("valor_plugin/run") | imported_by("valor_plugin/host")
    assert offenders(files, "re") == {}


def in_a_fresh_process(code: str, *arguments: str, **environment: str) -> str:
    plain = {k: v for k, v in os.environ.items() if k != "VALOR_HOST_SETTINGS"}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=plain | environment,
        capture_output=True,
        text=True,
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
from valor_plugin.host import seams, vllm_plugin
seams.adapt()
vllm_plugin.register()

assert now() == before, "torch.cuda was changed"
assert modules == [n for n in sys.modules if n.startswith(("flash_attn", "openrlhf"))]
assert "ray" not in sys.modules and "vllm" not in sys.modules
"""


def test_outside_of_a_run_cpu_mode_leaves_no_trace():
    pytest.importorskip("torchxrayvision")
    pytest.importorskip("transformers")
    in_a_fresh_process(NO_TRACE)


ADAPTED = """
import sys
from importlib import import_module
from valor_plugin.host import seams
from valor_plugin.host.settings import HostSettings

applied = []
apply = seams.Seam.apply
def apply_and_note(seam, settings):
    before = seam.find()[2]
    apply(seam, settings)
    applied.append(seam.target)
    found = seam.find()[2]
    assert found is not before or hasattr(found, "reference_forward"), seam.target
seams.Seam.apply = apply_and_note

for processes in (seams.IN_RAY, seams.IN_VLLM):
    seams.adapt(processes)
    seams.adapt(processes)  # once is enough
heavy = {"torch", "openrlhf", "deepspeed", "vllm", "transformers", "ray"} & set(sys.modules)
assert not heavy, f"adapting has imported {heavy}"
settings = HostSettings.current()
assert all(seam.wanted(settings) for seam in seams.SEAMS), "this run needs every seam"
for seam in seams.SEAMS:
    import_module(seam.module)
assert sorted(applied) == sorted(seam.target for seam in seams.SEAMS)
# What another module of the host has copied is the replaced one.
from openrlhf.trainer.ray import ppo_actor
assert ppo_actor.stateless_init_process_group.__module__ == "valor_plugin.host.cpu"
assert ppo_actor.merge_mm_train_inputs.__module__ == "valor_plugin.host.images"
"""


def settings(records: Path, **changes) -> HostSettings:
    given = dict(
        run="r", records=str(records), device="cuda", trainable=("projector",), lora=Lora(),
        advantage=Advantage(), rewards={"format": {}}, served=None, bounds=(0, 1),
        log_keys=("format",), actors=3, rollout_images=4, banned_tokens=(3,), seed=1,
        deterministic=False,
    )  # fmt: skip
    return HostSettings(**given | changes)


def test_every_target_of_the_table_is_replaced_in_the_real_host_when_it_is_imported(tmp_path):
    pytest.importorskip("openrlhf")
    pytest.importorskip("vllm")
    here = settings(tmp_path, device="cpu", deterministic=True)
    in_a_fresh_process(ADAPTED, DS_ACCELERATOR="cpu", **here.environment())


RUNS_NO_CODE = """
import json, sys
from pathlib import Path
from valor_plugin.host import seams
seams.adapt(seams.IN_VLLM)
folder, marker = Path(sys.argv[1]), Path(sys.argv[1], "executed")
folder.joinpath("code.py").write_text(f"open({str(marker)!r}, 'w')\\nclass Config: pass\\n")
config = {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}
folder.joinpath("config.json").write_text(json.dumps(config))
from transformers import AutoConfig
try:
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
except RuntimeError as error:
    assert "code is not executed: Config of" in str(error), error
else:
    raise AssertionError("it was loaded")
assert not marker.exists()
"""


def test_in_a_run_no_code_of_a_model_folder_is_executed_whatever_the_host_asks_for(tmp_path):
    pytest.importorskip("vllm")
    in_a_fresh_process(RUNS_NO_CODE, str(tmp_path), **settings(tmp_path).environment())


def test_a_target_that_is_gone_is_refused_with_its_name():
    seam = Seam("json:JSONDecoder.no_such_method", "policy:train_parts", "policy")
    with pytest.raises(SeamError, match=r"json:JSONDecoder\.no_such_method is not there: .*tested"):
        seam.apply(settings(Path("out")))


def test_a_wrapper_gets_what_stands_at_the_target_and_the_settings(monkeypatch, tmp_path):
    calls = []

    def wrap(found, given):
        calls.append((found, given))
        return lambda: "wrapped"

    monkeypatch.setattr(json, "one", lambda: "original", raising=False)
    monkeypatch.setattr(policy, "wrap", wrap, raising=False)
    here = settings(tmp_path)
    Seam("json:one", "policy:wrap", "policy").apply(here)
    assert calls[0][0]() == "original"
    assert calls[0][1] is here
    assert json.one() == "wrapped"


CUDA_RUN = """
import sys
from valor_plugin.host import vllm_plugin
from valor_plugin.host.settings import HostSettings
assert HostSettings.current().device == "cuda"
vllm_plugin.register()
assert "valor_plugin.host.cpu" not in sys.modules
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
for name in ("vision_tower.", "vision_tower.vision_model.", "model.vision_tower."):
    found = LlavaForConditionalGeneration.hf_to_vllm_mapper._map_name(f"{name}encoder.layers.0.x")
    assert found == "vision_tower.vision_model.encoder.layers.0.x", found
"""


def test_in_a_run_on_cuda_vllm_learns_both_spellings_of_a_tower_and_nothing_else(tmp_path):
    pytest.importorskip("vllm")
    in_a_fresh_process(CUDA_RUN, **settings(tmp_path).environment())


def test_outside_of_a_run_the_hooks_load_nothing_heavy():
    in_a_fresh_process(
        "import sys\nfrom valor_plugin.host import seams, vllm_plugin\n"
        "seams.adapt(); vllm_plugin.register()\n"
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
