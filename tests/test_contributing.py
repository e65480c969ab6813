"""CONTRIBUTING.md: its example runs, and the rooms that it names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_example_of_a_reward_can_be_used_in_a_set():
    from reward_sdk import RewardSet, Sample

    exec(re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1], {})
    rewards = RewardSet.from_config({"brevity": {"weight": 2}})
    [score] = rewards.score([Sample("<report> No effusion. </report>")])
    assert score.total == 1.0


def test_every_room_that_is_named_is_there():
    packages = re.split(r"\n    (?=reward_sdk/|valor_plugin/)", TEXT)[1:3]
    for package in packages:
        name, *lines = package.split("\n\n")[0].splitlines()
        rooms = [room for line in lines for room in re.split(r"\s{2,}", line.strip())[0].split()]
        assert len(rooms) > 10
        for room in rooms:
            path = ROOT / name.strip() / room
            assert path.exists() or path.with_suffix(".py").exists(), path
