"""What happens before and around the host's process; the host itself runs in tests/e2e."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import yaml
from PIL import Image

pytest.importorskip("openrlhf")
from reward_sdk.errors import ConfigError
from valor_plugin import command, launch, preflight, runfolder
from valor_plugin.host import options
from valor_plugin.host.settings import HostSettings
from valor_plugin.recipe import Model, Recipe

REWARDS = {"rouge_l": {"weight": 0.9}, "format": {"weight": 0.1}}


def recipe(model: Path | str = "m", studies: Path | str = "s.jsonl", **keys) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "stage": "grpo",
            "model": {"path": str(model), "train": "projector"},
            "data": {"train": str(studies)},
            "rewards": REWARDS,
            "openrlhf": {
                "actor.num_gpus_per_node": 1,
                "ref.num_gpus_per_node": 1,
                "data.max_len": 128,
                "rollout.batch_size": 2,
                "rollout.n_samples_per_prompt": 4,
                "train.batch_size": 8,
                "train.micro_batch_size": 4,
                "vllm.num_engines": 1,
            },
        }
        | keys
    )


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A file of five studies with reports."""
    Image.new("L", (40, 40), 90).save(tmp_path / "film.png")
    path = tmp_path / "studies.jsonl"
    rows = [{"id": f"s{i}", "image": "film.png", "report": "Clear."} for i in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def prepared(recipe: Recipe, tmp_path: Path) -> preflight.Prepared:
    return preflight.prepare(recipe, "r.yaml", tmp_path / "run", "cpu")


def test_a_prepared_run_leaves_its_record(tiny_model, studies, tmp_path):
    prepared(recipe(tiny_model, studies), tmp_path)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"recipe.yaml", "versions.json", "command.txt", "train.jsonl"}


def test_the_recorded_recipe_is_complete(tiny_model, studies, tmp_path):
    wanted = recipe(tiny_model, studies)
    prepared(wanted, tmp_path)
    written = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert Recipe.model_validate(written) == wanted


def test_the_record_names_device_digest_and_versions(tiny_model, studies, tmp_path):
    prepared(recipe(tiny_model, studies), tmp_path)
    record = json.loads((tmp_path / "run/versions.json").read_text())
    assert record["device"] == "cpu"
    assert len(record["digest"]) == 64
    assert record["versions"]["openrlhf"] == "0.11.2"
    assert {"python", "torch", "transformers", "ray", "valor-rrg"} <= record["versions"].keys()


def test_a_run_goes_on_from_the_checkpoints_of_its_own_recipe(tiny_model, studies, tmp_path):
    first = prepared(recipe(tiny_model, studies), tmp_path)
    checkpoint(tmp_path / "run", "global_step2")
    again = prepared(recipe(tiny_model, studies), tmp_path)
    assert (first.resumes, again.resumes) == (False, True)
    assert "--ckpt.load_enable" in again.arguments
    assert "--ckpt.load_enable" not in first.arguments


def checkpoint(run: Path, tag: str) -> None:
    """What the host leaves: files of each step, and last of all the name of the newest."""
    folder = run / "checkpoints/_actor"
    (folder / "global_step2").mkdir(parents=True)
    (folder / "global_step2/model.pt").write_bytes(b"weights")
    (folder / "latest").write_text(tag)


@pytest.mark.parametrize("tag", ["", "global_step4"])
def test_a_checkpoint_that_was_not_written_to_its_end_does_not_count(
    tiny_model, studies, tmp_path, tag
):
    prepared(recipe(tiny_model, studies), tmp_path)
    checkpoint(tmp_path / "run", tag)
    assert not prepared(recipe(tiny_model, studies), tmp_path).resumes


def test_checkpoints_of_another_recipe_are_refused(tiny_model, studies, tmp_path):
    prepared(recipe(tiny_model, studies), tmp_path)
    checkpoint(tmp_path / "run", "global_step2")
    with pytest.raises(ConfigError, match="recipe was another"):
        prepared(recipe(tiny_model, studies, seed=1), tmp_path)


def test_the_digest_changes_with_the_recipe(tmp_path):
    digests = []
    for seed in (1, 1, 2):
        runfolder.write_record(tmp_path, runfolder.resolved(recipe(seed=seed)), "cpu")
        digests.append(json.loads((tmp_path / "versions.json").read_text())["digest"])
    assert digests[0] == digests[1] != digests[2]


def test_the_image_token_is_banned(tiny_model, studies, tmp_path):
    token = json.loads((tiny_model / "config.json").read_text())["image_token_index"]
    assert prepared(recipe(tiny_model, studies), tmp_path).settings.banned_tokens == (token,)


def test_settings_reach_another_process_as_they_are(tiny_model, studies, tmp_path, monkeypatch):
    settings = prepared(recipe(tiny_model, studies), tmp_path).settings
    for key, value in settings.environment().items():
        monkeypatch.setenv(key, value)
    assert HostSettings.current() == settings


def test_the_host_accepts_the_arguments_of_a_prepared_run(tiny_model, studies, tmp_path):
    arguments = prepared(recipe(tiny_model, studies), tmp_path).arguments
    read = vars(options.parser().parse_args(arguments))
    assert read["actor.model_name_or_path"] == str(tiny_model)
    assert read["algo.advantage.estimator"] == "dr_grpo"
    assert read["vllm.sync_backend"] == "gloo"


def test_the_steps_of_a_run_are_known_before_it_starts(tiny_model, studies, tmp_path):
    # five studies in batches of two, twice
    twice = recipe().openrlhf | {"train.num_episodes": 2}
    assert launch._steps(prepared(recipe(tiny_model, studies, openrlhf=twice), tmp_path)) == 6


def test_a_finished_run_is_not_overwritten(tiny_model, studies, tmp_path):
    (tmp_path / "run/model").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds a finished run"):
        prepared(recipe(tiny_model, studies), tmp_path)


def test_text_rewards_want_reports(tiny_model, tmp_path):
    Image.new("L", (40, 40)).save(tmp_path / "film.png")
    path = tmp_path / "studies.jsonl"
    path.write_text(json.dumps({"id": "s1", "image": "film.png"}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"studies\.jsonl: no study has a 'report'"):
        prepared(recipe(tiny_model, path), tmp_path)


def test_an_image_that_breaks_off_is_refused_where_the_expert_looks_at_it(
    tiny_model, studies, tmp_path, monkeypatch
):
    from reward_sdk.errors import ScoringError
    from reward_sdk.models import baseline, torchxrayvision

    def fit(*_args, **_kwargs):
        raise ScoringError("image film.png: cannot be read: truncated")

    monkeypatch.setattr(torchxrayvision, "load_expert", lambda *_: None)
    monkeypatch.setattr(baseline, "fit_calibration", fit)
    with pytest.raises(ConfigError, match=r"studies\.jsonl: image film\.png: cannot be read"):
        prepared(recipe(tiny_model, studies, rewards={"image_text": {"weights": "x.pt"}}), tmp_path)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("train.async_enable", True),
        ("train.dynamic_batch_enable", True),
        ("train.enable_ema", True),
        ("ds.ring_attn_size", 2),
        ("ds.lora.rank", 8),
        ("eval.dataset", "studies.jsonl"),
    ],
)
def test_what_the_plugin_cannot_do_with_the_host_is_refused(option, value):
    with pytest.raises(ConfigError, match=rf"r\.yaml: openrlhf\.{option} does not work"):
        command.check(recipe(openrlhf={option: value}), "r.yaml")


def test_an_optimizer_batch_that_no_rollout_fills_is_refused():
    huge = recipe(openrlhf=recipe().openrlhf | {"train.batch_size": 1000})
    with pytest.raises(ConfigError, match="does not divide a rollout of"):
        command.host_arguments(huge, "r.yaml", Path("out"), "cpu")


def test_several_gpus_get_whole_rollouts_only(tiny_model, studies, tmp_path):
    shared = recipe(tiny_model, studies)
    two = shared.model_copy(update={"openrlhf": {**shared.openrlhf, "actor.num_gpus_per_node": 2}})
    arguments = prepared(two, tmp_path).arguments
    assert vars(options.parser().parse_args(arguments))["data.max_samples"] == 4  # of five


def test_ranks_replace_no_other_estimator():
    other = {"algo.advantage.estimator": "group_norm"}
    with pytest.raises(ConfigError, match="'group_norm': leave it out"):
        command.host_options(recipe(openrlhf=other), Path("out"), "cuda")


def test_without_ranks_the_host_keeps_its_own_estimator():
    chosen = {"algo.advantage.estimator": "group_norm"}
    raw = recipe(openrlhf=chosen, advantage={"rank": "off"})
    assert command.host_options(raw, Path("out"), "cuda").items() >= chosen.items()


def test_on_cuda_the_recipe_decides_what_a_cpu_cannot_do():
    nccl = recipe(openrlhf={"vllm.sync_backend": "nccl"})
    assert command.host_options(nccl, Path("out"), "cuda")["vllm.sync_backend"] == "nccl"
    assert command.host_options(nccl, Path("out"), "cpu")["vllm.sync_backend"] == "gloo"


def test_another_version_of_the_host_is_refused(monkeypatch):

    monkeypatch.setattr(install, "version", lambda name: "0.12.0")
    with pytest.raises(ConfigError, match=r"OpenRLHF 0\.12\.0 is installed"):
        command.check(recipe(), "r.yaml")


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert preflight.choose_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="--device cuda: torch sees no CUDA device"):
        preflight.choose_device("cuda")


def test_a_gpu_is_used_where_there_is_one_unless_told_otherwise(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [preflight.choose_device(d) for d in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model's folder by links, from which files can be removed."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


COLOCATED = {"actor.num_gpus_per_node": 8, "ref.num_gpus_per_node": 8, "vllm.num_engines": 8,
             "train.colocate_all": True}  # fmt: skip


def chosen(options_: dict) -> dict:
    return vars(options.parser().parse_args(options.arguments(options_)))


@pytest.mark.parametrize(
    ("options_", "wanted"),
    [
        ({"actor.num_gpus_per_node": 2, "ref.num_gpus_per_node": 2, "vllm.num_engines": 3}, 7),
        ({"actor.num_gpus_per_node": 2, "algo.kl.init_coef": 0, "vllm.num_engines": 3}, 5),
        (COLOCATED, 8),
        ({"vllm.num_engines": 1, "vllm.tensor_parallel_size": 4, "actor.num_gpus_per_node": 1,
          "algo.kl.init_coef": 0}, 5),
    ],
)  # fmt: skip
def test_the_gpus_of_a_run_are_counted_as_the_host_reserves_them(options_, wanted):
    assert command.gpus(chosen(options_)) == wanted


@pytest.mark.parametrize(
    ("train", "wanted"), [("projector", 5), (["tower", "lora"], 5), ("language", 8), ("all", 8)]
)
def test_a_reference_costs_gpus_only_where_the_language_model_trains(tmp_path, train, wanted):
    options_ = {"actor.num_gpus_per_node": 2, "ref.num_gpus_per_node": 3, "vllm.num_engines": 3}
    given = recipe().model_copy(update={"openrlhf": options_})
    given = given.model_copy(update={"model": Model(path="m", train=train)})
    assert command.gpus(chosen(command.host_options(given, tmp_path, "cuda"))) == wanted


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ds.zero_stage": 3}, "ds.zero_stage 3 does not go with `model.train: lora`"),
        ({"ds.tensor_parallel_size": 2}, "ds.tensor_parallel_size 2 does not go with"),
        ({"ds.load_in_4bit": True}, "ds.load_in_4bit True does not go with"),
    ],
)
def test_adapters_are_refused_where_no_process_holds_a_weight_whole(tmp_path, change, why):
    given = recipe()
    given = given.model_copy(update={"model": Model(path="m", train="lora")})
    command.host_arguments(given, "r.yaml", tmp_path, "cpu")
    given = given.model_copy(update={"openrlhf": given.openrlhf | change})
    with pytest.raises(ConfigError, match=re.escape(why)):
        command.host_arguments(given, "r.yaml", tmp_path, "cpu")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ref.num_gpus_per_node": 4}, "must be equal (8 and 4 in all)"),
        ({"vllm.num_engines": 4}, "the actor's GPUs (8) must be those of the engines"),
        ({"train.batch_size": 12, "train.micro_batch_size": 1}, "12 is no multiple of 8"),
    ],
)
def test_parts_that_the_host_cannot_place_together_are_refused(change, why):
    command.check_gpus(chosen(COLOCATED), "r.yaml")
    with pytest.raises(ConfigError, match=re.escape(why)):
        command.check_gpus(chosen(COLOCATED | change), "r.yaml")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"vllm.num_engines": None}, "vllm.num_engines says how many"),
        ({"ckpt.save_steps": 0}, "save_steps must be at least 1, or -1"),
        ({"ckpt.save_steps": 5, "ckpt.max_num": 1}, "max_num must be at least 2"),
        ({"actor.num_gpus_per_node": 0}, "num_gpus_per_node must be at least 1, not 0"),
        (
            {"actor.num_gpus_per_node": 8, "train.micro_batch_size": 1},
            "without a GPU, .* the recipe asks for 9",
        ),
    ],
)
def test_options_that_would_fail_or_hang_after_the_start_are_refused(changes, why):
    given = recipe()
    given = given.model_copy(update={"openrlhf": given.openrlhf | changes})
    with pytest.raises(ConfigError, match=why):
        command.host_arguments(given, "r.yaml", Path("out"), "cpu")


def test_a_rollout_of_nothing_is_refused_with_checkpoints_too(tiny_model, studies, tmp_path):
    none = recipe().openrlhf | {"ckpt.save_steps": 1, "rollout.batch_size": 0}
    with pytest.raises(ConfigError, match=r"rollout\.batch_size must be at least 1"):
        prepared(recipe(tiny_model, studies, openrlhf=none), tmp_path)


def test_sequences_longer_than_the_model_knows_positions_are_refused(tiny_model, studies, tmp_path):
    long = recipe().openrlhf | {"data.max_len": 4096}
    with pytest.raises(ConfigError, match=r"data\.max_len 4096 is more than the 512 positions"):
        prepared(recipe(tiny_model, studies, openrlhf=long), tmp_path)


def test_with_checkpoints_every_rollout_is_whole(tiny_model, studies, tmp_path):
    saved = recipe(tiny_model, studies).openrlhf | {"ckpt.save_steps": 1}
    arguments = prepared(recipe(tiny_model, studies, openrlhf=saved), tmp_path).arguments
    assert arguments[arguments.index("--data.max_samples") + 1] == "4"


@pytest.mark.parametrize("index", ['{"metadata": {}', "{}", "[]", '{"weight_map": ["a"]}'])
def test_a_damaged_shard_index_is_refused(model, index):
    (model / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ConfigError, match=r"index\.json is cut short or damaged"):
        preflight.check_model(str(model))


def test_weights_that_are_cut_short_are_refused(model):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ConfigError, match=r"model\.safetensors .* cut short or damaged"):
        preflight.check_model(str(model))


def test_a_shard_that_the_index_names_must_be_there(model):
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"lacks model-00002-of-00002\.safetensors"):
        preflight.check_model(str(model))


def test_a_complete_model_passes(model):
    preflight.check_model(str(model))


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("config.json", "holds no config.json"),
        ("model.safetensors", "holds no weights"),
        ("processor_config.json", "has no processor_config.json"),
        ("tokenizer_config.json", "has no tokenizer_config.json"),
    ],
)
def test_an_incomplete_model_is_refused_with_what_it_lacks(model, file, why):
    (model / file).unlink()
    with pytest.raises(ConfigError, match=why):
        preflight.check_model(str(model))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ('{"model_type": "mistral"}', "is of type 'mistral'"),
        ("{}", "is of type None"),
        ("[]", "config.json of .* is no JSON object"),
        ("{", "config.json of .* is no JSON object"),
        ("", "config.json of .* is no JSON object"),
    ],
)
def test_another_kind_of_model_is_refused(model, config, why):
    (model / "config.json").unlink()
    (model / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ConfigError, match=why):
        preflight.check_model(str(model))


WORKER = "\x1b[36m(PolicyModelActor pid=4711)\x1b[0m "
ROLLOUT = "\x1b[36m(RolloutRayActor pid=4712, ip=10.0.0.2)\x1b[0m "
CORE = "\x1b[0;36m(EngineCore_DP0 pid=4713)\x1b[0;0m "
VLLM = "ERROR 11-23 02:37:01 [core.py:842] "


@pytest.mark.parametrize(
    ("log", "root"),
    [
        (
            "INFO: starting\n"
            "Traceback (most recent call last):\n"
            '  File "x.py", line 1, in <module>\n'
            "FileNotFoundError: [Errno 2] No such file or directory: 'x'\n",
            "FileNotFoundError: [Errno 2] No such file or directory: 'x'",
        ),
        (
            f"{WORKER}Traceback (most recent call last):\n"
            f'{WORKER}  File "actor.py", line 7, in init\n'
            f"{WORKER}ValueError: parameter 'x.weight' belongs to none of the parts.\n"
            "Traceback (most recent call last):\n"
            "ray.exceptions.RayTaskError(ValueError): \x1b[36mray::PolicyModelActor\x1b[39m\n"
            "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing.\n",
            "ValueError: parameter 'x.weight' belongs to none of the parts",
        ),
        (
            f"{ROLLOUT}{CORE}{VLLM}EngineCore failed to start.\n"
            f"{ROLLOUT}{CORE}{VLLM}Traceback (most recent call last):\n"
            f"{ROLLOUT}{CORE}{VLLM}RuntimeError: no room for the KV cache\n"
            f"{ROLLOUT}vllm.v1.engine.exceptions.EngineDeadError: EngineCore had an issue.\n"
            "ray.exceptions.RayTaskError(EngineDeadError): ray::RolloutRayActor.generate()\n",
            "RuntimeError: no room for the KV cache",
        ),
        (
            f"{ROLLOUT}reward_sdk.errors.ScoringError: rouge_l failed on sample 's1': boom\n",
            "reward_sdk.errors.ScoringError: rouge_l failed on sample 's1': boom",
        ),
        (
            f"{WORKER}torch.OutOfMemoryError: CUDA out of memory.\n",
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        (f"{WORKER}Traceback (most recent call last):\n{WORKER}AssertionError\n", "AssertionError"),
        (
            "ray.exceptions.OutOfMemoryError: Task was killed: the node runs low on memory.\n",
            "ray.exceptions.OutOfMemoryError: Task was killed: the node runs low on memory",
        ),
        (  # Ray forwards what workers print with a delay
            f"ray.exceptions.ActorDiedError: The actor died.\n{WORKER}KeyError: 'policy_step'\n",
            "KeyError: 'policy_step'",
        ),
        (
            f"{ROLLOUT}vllm.v1.engine.exceptions.EngineDeadError: EngineCore had an issue.\n"
            f"{CORE}{VLLM}RuntimeError: no room for the KV cache\n",
            "RuntimeError: no room for the KV cache",
        ),
    ],
    ids=["plain", "worker", "vllm", "reward", "memory", "bare", "only ray", "late", "late vllm"],
)
def test_the_cause_is_the_first_exception_that_reports_no_other(log, root):
    assert launch.cause(log) == f"The run failed: {root}."


def test_talk_about_errors_is_no_cause():
    log = f"{WORKER}ValueError: bad\n{WORKER}warning: retry after TimeoutError: 3 s\n"
    assert launch.cause(f"note: catches OSError: fine\n{log}") == "The run failed: ValueError: bad."


def test_without_an_exception_the_last_line_is_told():
    log = f"{WORKER}loading\n{WORKER}Killed\n\n"
    assert launch.cause(log) == "The run ended without a model. The last line of its log: Killed."


def test_an_empty_log_has_a_cause_too():
    assert "(nothing)" in launch.cause("")


def test_a_step_is_one_line_with_components_averaged_over_where_they_counted(capsys):
    launch.print_step(
        3, 20,
        {
            "reward": 0.25, "rouge_l": 0.3, "rouge_l/applied": 0.5, "format": 1.0,
            "format/applied": 1.0, "findings_f1": 0.0, "findings_f1/applied": 0.0,
            "timing/step_total": 1.234,
        },
    )  # fmt: skip
    line = "step    3/20  reward  0.250  rouge_l 0.600  format 1.000  1.2 s\n"
    assert capsys.readouterr().out == line


def test_steps_are_read_from_the_hosts_log(tmp_path):
    log = tmp_path / "host.log"
    log.write_text(
        f"{WORKER}\x1b[32mINFO\x1b[0m ✨ Global step 1: {{'reward': 0.5, 'kl': -1.5e-05}}\nnoise\n"
        "✨ Global step 2: {'reward': nan, 'format/applied': 1.0, 'note': 'x'}\n",
        encoding="utf-8",
    )
    seen = []
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        launch._follow(process, log, 0, lambda *step: seen.append(step), 9)
    assert seen[0] == (1, 9, {"reward": 0.5, "kl": -1.5e-05})
    assert seen[1][2].keys() == {"reward", "format/applied"}


@pytest.fixture
def mark():
    """A run's identity; whatever carries it is ended after the test."""
    run = uuid.uuid4().hex
    yield run
    for pid in launch.processes_of(run):
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
    process = started(mark, SLEEP)
    assert launch.processes_of(mark) == [process.pid]
    assert launch.processes_of(uuid.uuid4().hex) == []
    process.kill()
    process.communicate()


def test_a_process_that_has_ended_but_was_not_waited_for_is_not_found(mark):
    process = started(mark, "print(flush=True)")
    deadline = time.monotonic() + 5
    while launch.processes_of(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert launch.processes_of(mark) == []
    process.communicate()


def test_ending_a_run_ends_what_outlives_its_driver(mark):
    orphan = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"
    )
    driver = started(mark, orphan)
    driver.wait()
    assert len(launch.processes_of(mark)) == 1
    launch._end(driver, mark)
    assert launch.processes_of(mark) == []


def test_ending_a_run_lets_its_driver_clean_up_first(mark, tmp_path):
    done = tmp_path / "done"
    driver = started(
        mark,
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # `make test &` ignores it\n"
        "try: print(flush=True); time.sleep(60)\n"
        f"except KeyboardInterrupt: open({str(done)!r}, 'w')",
    )
    launch._end(driver, mark)
    assert done.exists()
    assert launch.processes_of(mark) == []
