"""The host's process, followed by its records and ended with everything that it started."""

import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("openrlhf")
from valor_plugin import records
from valor_plugin.host.command import HostCommand
from valor_plugin.host.settings import HostSettings
from valor_plugin.recipe import Advantage, Lora
from valor_plugin.records import Failure, RewardMeans, Step, SupervisedStep
from valor_plugin.run import process
from valor_plugin.run.folder import RunFolder

STEP = Step(
    step=3, time=0.0, reward=0.25, unscored=0.0, tied=0.0, kl=None, length=9.0, truncated=0.0,
    parts={"rouge_l": RewardMeans(0.6, 0.5, 0.0), "format": RewardMeans(1.0, 1.0, 0.0),
           "findings_f1": RewardMeans(None, 0.0, 0.0)},
    seconds={"total": 1.234}, synced={"tensors": 4, "bytes": 100},
)  # fmt: skip


def test_a_step_is_one_line_with_components_where_they_counted(capsys):
    process.print_step(STEP, 20)
    line = "step    3/20  reward  0.250  rouge_l 0.600  format 1.000  1.2 s\n"
    assert capsys.readouterr().out == line


def test_a_reward_that_fails_is_named_with_its_share(capsys):
    parts = {"chexbert_f1": RewardMeans(0.5, 0.75, 0.25)}
    process.print_step(Step(**{**vars(STEP), "parts": parts}), 20)
    assert "chexbert_f1 0.500  chexbert_f1 FAILED for 25%" in capsys.readouterr().out


def test_a_step_whose_reward_is_no_number_says_so(capsys):
    process.print_step(Step(**{**vars(STEP), "reward": None}), 20)
    assert "reward   none" in capsys.readouterr().out


def test_a_step_of_fine_tuning_is_one_line_with_its_evaluation_where_there_was_one(capsys):
    step = SupervisedStep(12, 0.0, 1.2344, 1e-5, 0.7, 400, 2.04)
    process.print_supervised_step(step, 120)
    process.print_supervised_step(replace(step, evaluation_loss=1.5), 120)
    assert capsys.readouterr().out.splitlines() == [
        "step   12/120  loss 1.234  2.0 s",
        "step   12/120  loss 1.234  held-out loss 1.500  2.0 s",
    ]


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.begin("name: test\n", "cpu")
    return folder


def run(folder: RunFolder, monkeypatch, host: str) -> list[tuple[int, int]]:
    """The steps that are reported while a stand-in for the driver does what `host` says."""
    code = "from pathlib import Path\nfrom valor_plugin.records import *\n"
    code += f"out = Path({str(folder.path)!r})\n"
    start = subprocess.Popen
    monkeypatch.setattr(
        process.subprocess, "Popen",
        lambda command, **options: start([sys.executable, "-c", code + host], **options),
    )  # fmt: skip
    settings = HostSettings(
        run=uuid.uuid4().hex, records=str(folder.path), device="cpu", trainable=("projector",),
        lora=Lora(), advantage=Advantage(), rewards={"format": {}}, served=None, bounds=(0, 1),
        log_keys=("format",), actors=3, rollout_images=4, banned_tokens=(3,), seed=1,
        deterministic=False,
    )  # fmt: skip
    seen: list[tuple[int, int]] = []

    def report(step: Step, total: int) -> None:
        seen.append((step.step, total))

    command = HostCommand((), {}, steps=9)
    process.run(process.PreparedRun(folder, command, settings, False, Step, report))
    return seen


SAVED = "(out / 'model.part').mkdir(); (out / 'model.part/config.json').write_text('{}')\n"
A_STEP = (
    "def a_step(n):\n"
    "    append(out / STEPS, Step(n, 0.0, 0.5, {}, 0.0, 0.0, None, 9.0, 0.0, {}, {}))\n"
)


def test_steps_are_reported_as_they_are_recorded_and_older_ones_are_not(
    folder, monkeypatch, capsys
):
    records.append(folder.steps, STEP)  # of an earlier start
    table = "write_trainable(out / TRAINABLE, [TrainablePart('projector', 4, 99, True)])\n"
    seen = run(folder, monkeypatch, A_STEP + table + "a_step(4)\na_step(5)\n" + SAVED)
    assert seen == [(4, 9), (5, 9)]
    assert capsys.readouterr().out.split() == [
        "projector",
        "4",
        "tensors",
        "99",
        "parameters",
        "trains",
    ]
    assert folder.model.is_dir()


def failed(folder: RunFolder, monkeypatch, host: str) -> str:
    with pytest.raises(process.RunError) as caught:
        run(folder, monkeypatch, host)
    return str(caught.value)


def test_a_run_that_fails_ends_with_the_recorded_cause_and_its_log(folder, monkeypatch):
    records.append(folder.failures, Failure("driver", 0.0, "OSError: of an earlier start"))
    host = "append(out / FAILURES, Failure('driver', 0.0, 'ValueError: bad.'))\nraise SystemExit(1)"
    message = failed(folder, monkeypatch, host)
    assert message == f"The run failed: ValueError: bad. The whole log: {folder.log}"


def test_a_run_that_ends_silently_ends_with_the_last_line_of_its_log(folder, monkeypatch):
    host = "print('loading', flush=True)\nprint()\nraise SystemExit(1)"
    message = failed(folder, monkeypatch, host)
    assert message.startswith(
        "The run ended without a model. The last line of its log: loading. The whole log:"
    )


@pytest.mark.parametrize(
    ("number", "said"), [(9, "9 (SIGKILL), perhaps for want of memory."), (11, "11 (SIGSEGV).")]
)
def test_a_run_that_is_killed_ends_with_the_signal(folder, monkeypatch, number, said):
    host = f"import os\nprint('loading', flush=True)\nos.kill(os.getpid(), {number})"
    message = failed(folder, monkeypatch, host)
    assert message.startswith(f"The run was killed by signal {said} The whole log:")


def test_a_full_disk_is_said_where_a_run_fails(folder, monkeypatch):
    monkeypatch.setattr(process.shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    message = failed(folder, monkeypatch, "raise SystemExit(1)")
    assert f"The disk of {folder.path} is full. The whole log:" in message


def test_a_run_without_a_word_has_a_cause_too(folder, monkeypatch):
    assert "(nothing)" in failed(folder, monkeypatch, "raise SystemExit(1)")


def test_a_start_whose_port_was_taken_is_made_again_up_to_three_times(folder, monkeypatch, capsys):
    taken = "append(out / FAILURES, Failure('driver', 0.0, 'DistNetworkError: EADDRINUSE'))\n"
    count = "with open(out / 'starts', 'a') as file: file.write('x')\n"
    assert "EADDRINUSE" in failed(folder, monkeypatch, count + taken + "raise SystemExit(1)")
    assert (folder.path / "starts").read_text() == "xxx"
    assert capsys.readouterr().out.count("starting again") == 2


def test_a_run_that_took_a_step_is_not_started_again(folder, monkeypatch):
    taken = "append(out / FAILURES, Failure('driver', 0.0, 'DistNetworkError: EADDRINUSE'))\n"
    count = "with open(out / 'starts', 'a') as file: file.write('x')\n"
    failed(folder, monkeypatch, A_STEP + count + taken + "a_step(1)\nraise SystemExit(1)")
    assert (folder.path / "starts").read_text() == "x"


@pytest.fixture
def mark():
    """A run's identity; whatever carries it is ended after the test."""
    run = uuid.uuid4().hex
    yield run
    for pid in process.processes_of(run):
        os.kill(pid, signal.SIGKILL)


def started(mark: str, code: str) -> subprocess.Popen:
    """A process of the run, which has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "RUN": mark}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


SLEEP = "print(flush=True); import time; time.sleep(60)"


def test_processes_of_a_run_are_found_by_its_mark(mark):
    worker = started(mark, SLEEP)
    assert process.processes_of(mark) == [worker.pid]
    assert process.processes_of(uuid.uuid4().hex) == []
    worker.kill()
    worker.communicate()


def test_a_process_that_has_ended_but_was_not_waited_for_is_not_found(mark):
    worker = started(mark, "print(flush=True)")
    deadline = time.monotonic() + 5
    while process.processes_of(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.processes_of(mark) == []
    worker.communicate()


def test_ending_a_run_ends_what_outlives_its_driver(mark):
    orphan = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"
    )
    driver = started(mark, orphan)
    driver.wait()
    assert len(process.processes_of(mark)) == 1
    process.end(driver, mark)
    assert process.processes_of(mark) == []


def test_ending_a_run_lets_its_driver_clean_up_first(mark, tmp_path):
    done = tmp_path / "done"
    driver = started(
        mark,
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # `make test &` ignores it\n"
        "try: print(flush=True); time.sleep(60)\n"
        f"except KeyboardInterrupt: open({str(done)!r}, 'w')",
    )
    process.end(driver, mark)
    assert done.exists()
    assert process.processes_of(mark) == []
