"""The rooms of the package: a module may import from its own room and from those below."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import reward_sdk

ROOMS = [  # from the ground floor up; a folder is a room with all that is in it
    {"errors"},
    {"text", "types", "observations"},
    {"images", "jsonl", "templates", "http"},
    {"models"},
    {"registry", "config"},
    {"rewards"},
    {"member", "reward_set"},
    {"metrics"},
    {"batching", "wire", "client"},
    {"audit"},
    {"adapters"},
    {"server"},
    {"commands"},
    {"cli"},
    {"reward_sdk", "__main__"},  # the face
]
FOLDER = Path(reward_sdk.__file__).parent


def name_of(path: Path) -> str:
    parts = ["reward_sdk", *path.relative_to(FOLDER).with_suffix("").parts]
    return ".".join(part for part in parts if part != "__init__")


FILES = {name_of(path): path for path in sorted(FOLDER.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """The package's modules that a file imports, wherever in it, for types alone among them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in names}
    return found & FILES.keys()


GRAPH = {name: imported(path) for name, path in FILES.items()}


def floor(module: str) -> int:
    room = module.removeprefix("reward_sdk.").partition(".")[0]
    [number] = [i for i, rooms in enumerate(ROOMS) if room in rooms]
    return number


def test_no_module_imports_itself_through_others():
    TopologicalSorter(GRAPH).prepare()  # names the modules of a cycle


@pytest.mark.parametrize("module", GRAPH)
def test_nothing_is_imported_from_a_room_above(module):
    above = [name for name in GRAPH[module] if floor(name) > floor(module)]
    assert not above, f"{module} imports {above}"


def test_the_imports_that_are_looked_at_are_those_that_are_there():
    assert (
        "reward_sdk.models.xray_expert" in GRAPH["reward_sdk.commands.calibrate"]
    )  # in a function
    assert "reward_sdk.audit.page" in GRAPH["reward_sdk.commands.audit"]  # a module by its name
    assert "reward_sdk.reward_set" in GRAPH["reward_sdk"]  # for types
