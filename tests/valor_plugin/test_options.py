import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("openrlhf")
from reward_sdk.errors import ConfigError
from valor_plugin.host import cpu, options

PARSER = options.parser()
KNOWN = {name for action in PARSER._actions for name in action.option_strings}


def refused(**chosen) -> str:
    with pytest.raises(ConfigError) as caught:
        options.check({key.replace("__", "."): value for key, value in chosen.items()}, "r.yaml")
    return str(caught.value)


def test_the_host_knows_how_many_samples_a_prompt_gets():
    assert "--rollout.n_samples_per_prompt" in KNOWN


@pytest.mark.parametrize("name", [*options.OURS, *cpu.HOST_OPTIONS])
def test_the_host_knows_every_option_that_this_plugin_sets(name):
    assert f"--{name}" in KNOWN


def test_an_unknown_option_is_refused_with_the_nearest_name():
    message = refused(rollout__n_sample_per_prompt=4)
    assert message.startswith("r.yaml: OpenRLHF has no option 'rollout.n_sample_per_prompt'")
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
        ("algo.advantage.estimator", "ppo"),
    ],
)
def test_a_value_that_the_host_refuses_is_an_error_with_the_option(name, value):
    message = refused(**{name: value})
    assert message.startswith("r.yaml: OpenRLHF refuses an option: ")


def test_options_that_the_host_knows_pass():
    options.check({"rollout.batch_size": 8, "actor.muon.no_nesterov": True}, "r.yaml")


@given(st.integers(1, 10**6), st.floats(1e-9, 10), st.booleans())
def test_the_host_reads_back_what_was_written(batch, rate, eager):
    written = {
        "rollout.batch_size": batch, "actor.adam.lr": rate, "vllm.enforce_eager": eager
    }  # fmt: skip
    read = vars(PARSER.parse_args(options.arguments(written)))
    assert {name: read[name] for name in written} == written


def test_true_is_a_bare_flag_and_false_and_null_are_left_out():
    chosen = {"a": True, "b": False, "c": None, "d": 0, "e": "x y", "f": [1, 2]}
    assert options.arguments(chosen) == ["--a", "--d", "0", "--e", "x y", "--f", "1", "2"]


def test_checking_options_loads_neither_ray_nor_vllm_nor_torch():
    code = """
import sys
from valor_plugin.host import options
options.check({"rollout.batch_size": 8}, "r.yaml")
assert not {"ray", "vllm", "deepspeed", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_hosts_own_checks_of_options_that_do_not_go_together_are_made_before_the_start():
    alone = options.arguments(
        {"algo.advantage.estimator": "group_norm", "rollout.n_samples_per_prompt": 1}
    )
    with pytest.raises(ConfigError, match=r"r\.yaml: OpenRLHF refuses .*n_samples_per_prompt > 1"):
        options.validate(alone, "r.yaml")
