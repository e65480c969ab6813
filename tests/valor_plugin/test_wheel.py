"""The wheel: everything that is read at run time is in it, and it works without the clone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_has_every_file_of_the_packages_and_every_recipe(wheel):
    wanted = {
        f"{prefix}{file.relative_to(ROOT)}"
        for folder, prefix in (
            ("reward_sdk", ""),
            ("valor_plugin", ""),
            ("recipes", "valor_plugin/"),
        )
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == wanted
    assert any(name.endswith(".jinja") for name in found)


COMMANDS = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from valor_plugin import cli, recipe
assert recipe.shipped_folder().parent.name == "valor_plugin"
cli.main()
"""


def test_recipes_are_found_in_the_wheel_alone(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")

    def openrlhf(*arguments: str) -> str:
        command = [sys.executable, "-I", "-c", COMMANDS, str(tmp_path / "site"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    assert "demo/stage2" in openrlhf("recipes")
    assert "stage: sft" in openrlhf("train", "--recipe", "valor_sft", "--command-only")
