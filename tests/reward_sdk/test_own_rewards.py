"""Rewards of users' own: a function, a class, a file, an entry point, and mistakes in them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from reward_sdk import Outcome, RewardSet, Sample, reward
from reward_sdk.cli import main
from reward_sdk.errors import ConfigError
from reward_sdk.registry import factory

EXAMPLES = Path(__file__).parents[2] / "examples"
REPORT = Sample("<report> Clear lungs. Unchanged heart. </report>", "Clear lungs.")


@pytest.fixture
def written(tmp_path):
    """Writes a file of rewards, and gives the key of one of them."""

    def write(text: str, name: str = "mine") -> str:
        (tmp_path / "own.py").write_text(text)
        return f"{tmp_path / 'own.py'}:{name}"

    return write


def part_of(key: str, *samples: Sample, **keys) -> Outcome:
    """What a set of this one reward makes of the first sample."""
    score = RewardSet.from_config({key: keys}).score(samples or [REPORT])[0]
    [part] = score.parts.values()
    return part


def test_a_function_of_samples_in_a_file_is_a_reward_with_its_settings(written):
    key = written("def mine(samples, per: int = 10):\n    return [1 / per for _ in samples]\n")
    assert part_of(key).value == 0.1
    assert part_of(key, per="4").value == 0.25


def test_a_class_in_a_file_is_a_reward_and_may_leave_its_name_and_range_out(written):
    key = written(
        "class mine:\n"
        "    def __init__(self, value: float = 0.5):\n        self.value = value\n"
        "    def __call__(self, samples):\n        return [self.value] * len(samples)\n"
    )
    assert part_of(key, value=0.25).value == 0.25


def test_a_registered_function_keeps_the_range_and_the_needs_that_it_was_given(written):
    key = written(
        "from reward_sdk import reward\n\n"
        "@reward('test_words', bounds=(0, 100), needs={'report', 'reference'})\n"
        "def words(samples):\n    return [len(s.reference.split()) for s in samples]\n",
        "words",
    )
    assert part_of(key).value == 2
    assert part_of(key, Sample("<report> a </report>")).reason == "no reference"
    assert RewardSet.from_config([key]).bounds == (0, 100)


def test_a_file_is_found_beside_the_set_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/own.py").write_text("def mine(samples):\n    return [1.0] * len(samples)\n")
    (tmp_path / "sets/set.yaml").write_text("own.py:mine: {}\n")
    monkeypatch.chdir(tmp_path)
    assert RewardSet.from_config("sets/set.yaml").score([REPORT])[0].total == 1


def test_what_has_changed_in_a_file_is_read_again_and_tells_sets_apart(written):
    key = written("def mine(samples):\n    return [0.0] * len(samples)\n")
    before = RewardSet.from_config([key])
    written("def mine(samples):\n    return [1.0] * len(samples)\n")
    after = RewardSet.from_config([key])
    assert [s.score([REPORT])[0].total for s in (before, after)] == [0, 1]
    assert before.digest != after.digest


def test_a_notebook_may_run_the_cell_of_a_reward_again():
    for value in (0.25, 0.75):

        @reward("test_cell")
        def cell(samples, value=value):
            return [value] * len(samples)

    assert RewardSet.from_config(["test_cell"]).score([REPORT])[0].total == 0.75


def test_a_reward_cannot_take_the_name_of_a_built_in_one():
    with pytest.raises(ConfigError, match="two rewards are named 'cider'"):
        reward("cider")(lambda samples: [])


@pytest.mark.parametrize("name", ["tags", "weight", "total", "my-reward", "a.b", "", 3])
def test_a_reward_cannot_have_a_name_that_a_set_could_not_say(name):
    with pytest.raises(ConfigError):
        reward(name)(lambda samples: [])


def test_none_is_a_part_that_does_not_apply_and_numbers_of_numpy_are_numbers(written):
    key = written(
        "import numpy as np\n\ndef mine(samples):\n"
        "    return [None if 'Clear' in s.report else np.float32(0.5) for s in samples]\n"
    )
    scores = RewardSet.from_config([key]).score([REPORT, Sample("<report> x </report>")])
    assert [s.total for s in scores] == [None, 0.5]
    assert [s.parts["mine"].status for s in scores] == ["not_applicable", "ok"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return [0.5]", "mine gave 1 values for 2 samples: return a list of one value for each"),
        ("return 0.5", "mine gave one float: return a list"),
        ("return {'mine': [1, 1]}", "mine gave one dict: return a list"),
        ("return {0.5, 0.6}", "mine gave one set: return a list"),
        ("return ['high', 'low']", "mine gave a str for a sample, no number"),
        ("return [7, 7]", r"outside of its range [0.0, 1.0]"),
        ("return [float('nan')] * 2", "gave nan"),
        ("return [s.reference.upper() for s in samples]", "AttributeError"),
    ],
)
def test_a_wrong_return_value_fails_every_sample_and_says_what_to_return(written, body, reason):
    key = written(f"def mine(samples):\n    {body}\n")
    scores = RewardSet.from_config([key]).score([Sample("<report> a </report>")] * 2)
    assert [score.total for score in scores] == [None, None]
    assert all(reason in score.parts["mine"].reason for score in scores)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def mine(completions, **kwargs): return [1]", "calls its first argument `samples`"),
        ("def mine(): return [1.0]", "gave list, which cannot be called"),
        ("mine = 3", "is a int: name a function of `samples`"),
        ("def mien(samples): return []", "has no 'mine': did you mean 'mien'?"),
        ("def mine(samples: return []", "does not load: SyntaxError"),
        ("raise RuntimeError('boom')", "does not load: RuntimeError: boom"),
        ("import sys\nsys.exit()", "does not load: SystemExit"),
        ("class mine:\n    def __init__(self): raise SystemExit", "cannot be built: SystemExit"),
        ("class mine:\n    needs = 3\n    def __call__(self, samples): ...", "its needs are 3"),
        ("class mine:\n    bounds = (0, float('inf'))\n    def __call__(self, samples): ...",
         "its bounds are"),
        ("import functools\nmine = functools.partial(len)", "is a partial: name a function"),
        ("def mine(samples, weight=1): return []", "its 'weight' is a key of every set"),
        ("class mine:\n    name = 'yours'\n    def __call__(self, samples): ...",
         "calls itself 'yours': write name = 'mine'"),
        ("class mine:\n    bounds = (1, 0)\n    def __call__(self, samples): ...",
         "its bounds are"),
        ("class mine:\n    needs = 'report'\n    def __call__(self, samples): ...",
         "its needs are 'report': write a set of"),
        ("class mine:\n    __slots__ = ()\n    def __call__(self, samples): ...",
         "has no 'name' and takes none"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_answered_with_what_to_change(written, text, message):
    with pytest.raises(ConfigError) as caught:
        RewardSet.from_config([written(text)])
    assert message in str(caught.value)


def test_two_files_may_register_one_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(
            "from reward_sdk import reward\n\n@reward('same')\n"
            f"def same(samples):\n    return ['{name}' == 'a'] * len(samples)\n"
        )
    sets = [RewardSet.from_config([f"{tmp_path}/{name}.py:same"]) for name in ("a", "b")]
    assert [one.score([REPORT])[0].total for one in sets] == [1, 0]


def test_a_reward_cannot_change_the_batch_that_others_see(written):
    key = written(
        "def mine(samples):\n    return [0.5 for _ in iter(lambda: samples.pop(), None)]\n"
    )
    score = RewardSet.from_config([key, "format"]).score([REPORT] * 2)[1]
    assert (score.parts["format"].value, score.parts["mine"].status) == (1, "failed")


@pytest.mark.parametrize("key", ["mine.py", "mine.py:"])
def test_a_file_without_a_name_is_answered_with_how_to_name_one(key):
    with pytest.raises(ConfigError, match=r"write mine\.py:NAME"):
        RewardSet.from_config([key])


def test_a_file_that_is_not_there_is_named_with_the_place_that_was_looked_at(tmp_path):
    (tmp_path / "set.yaml").write_text("rewards: {none.py:mine: {}}")
    with pytest.raises(ConfigError, match=rf"cannot read {tmp_path}/none\.py"):
        RewardSet.from_config(tmp_path / "set.yaml")


def test_a_reward_reads_images_of_every_kind_by_open_image(written, tmp_path):
    key = written(
        "from reward_sdk import open_image, reward\n\n"
        "@reward('test_exposure', needs={'image'})\n"
        "def mine(samples):\n"
        "    return [open_image(s.image).convert('L').getpixel((0, 0)) / 255 for s in samples]\n"
    )
    picture, path = Image.new("L", (8, 8), 51), tmp_path / "film.png"
    picture.save(path)
    given = [picture, path, str(path), path.read_bytes()]
    scores = RewardSet.from_config([key]).score([Sample("", image=image) for image in given])
    assert [score.total for score in scores] == [0.2] * 4


def test_an_image_in_memory_that_is_opened_as_a_file_names_the_function_that_reads_it(written):
    key = written(
        "from reward_sdk import reward\n\n@reward('test_opens', needs={'image'})\n"
        "def mine(samples):\n    return [s.image.open() for s in samples]\n"
    )
    part = part_of(key, Sample("", image=Image.new("L", (8, 8))))
    assert "in memory and no file: reward_sdk.open_image" in part.reason


def test_a_python_object_in_a_foreign_message_is_named_by_its_type(written):
    key = written("def mine(samples):\n    raise ValueError(f'cannot read {object()}')\n")
    assert part_of(key).reason == "mine: ValueError: cannot read object"


@pytest.mark.parametrize("rewards", [[len], {"rouge_l": {}}, "set.yaml"])
def test_the_constructor_sends_words_to_from_config(rewards):
    with pytest.raises(TypeError, match=r"RewardSet\.from_config"):
        RewardSet(rewards)


def test_two_rewards_of_one_name_are_refused(written):
    key = written("def rouge_l(samples):\n    return [0.0] * len(samples)\n", "rouge_l")
    with pytest.raises(ConfigError, match="2 rewards are named 'rouge_l'"):
        RewardSet.from_config(["rouge_l", key])


def test_an_entry_point_may_name_a_plain_function(tmp_path):
    (tmp_path / "own_package.py").write_text(
        "def mine(samples):\n    return [0.5] * len(samples)\n"
    )
    metadata = tmp_path / "own-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[reward_sdk.rewards]\nmine = own_package:mine\n")
    code = (
        "from reward_sdk import RewardSet, Sample\n"
        "print(RewardSet.from_config(['mine']).score([Sample('<report> a </report>')])[0])"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{EXAMPLES.parent}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "0.5000\n", done.stderr


def test_the_example_is_scored_from_its_set_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"id": 1, "response": REPORT.response, "reference": REPORT.reference}
    Path("data.jsonl").write_text(json.dumps(row))
    done = CliRunner().invoke(
        main,
        ["score", "--set", str(EXAMPLES / "no_priors.yaml"), "--data", "data.jsonl", "--out", "o"],
    )
    assert done.exit_code == 0, done.output
    assert json.loads(Path("o").read_text())["parts"]["no_priors"]["value"] == 0.5


def test_the_example_is_fifteen_lines_without_its_docstring():
    lines = (EXAMPLES / "no_priors.py").read_text().rpartition('"""\n\nimport')[2].splitlines()
    assert len([line for line in lines if line.strip()]) <= 15


def test_a_factory_says_what_its_reward_needs_before_it_is_built():
    assert set(factory("rouge_l").needs or ()) == {"report", "reference"}
