"""Exceptions of the processes of a run, and which of them is the root."""

import pytest

from valor_plugin.host.failures import failure, lost_a_port, root
from valor_plugin.records import Failure

DRIVER, ENGINE = "driver", "vLLM"


def of(process: str, error: str) -> Failure:
    return Failure(process, 0.0, error)


DIED = of(DRIVER, "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing.")
DEAD = of(DRIVER, "vllm.v1.engine.exceptions.EngineDeadError: EngineCore had an issue.")
STARTUP = of(DRIVER, "RuntimeError: Engine core initialization failed. See root cause above.")
NO_ROOM = of(ENGINE, "RuntimeError: no room for the KV cache")
OWN = of(DRIVER, "ValueError: parameter 'x.weight' belongs to none of the parts.")


@pytest.mark.parametrize(
    ("failures", "wanted"),
    [
        ([OWN], OWN),
        ([NO_ROOM, DEAD], NO_ROOM),
        ([NO_ROOM, STARTUP], NO_ROOM),
        ([NO_ROOM, DIED], NO_ROOM),
        ([NO_ROOM, OWN], OWN),  # what an engine logged and went on after
        ([DIED], DIED),
        ([DEAD], DEAD),
        ([], None),
    ],
    ids=["own", "dead engine", "engine's start", "killed actor", "own after a logged one",
         "only ray", "only vLLM", "nothing"],
)  # fmt: skip
def test_the_root_is_the_exception_that_reports_no_other(failures, wanted):
    assert root(failures) == wanted


def raised(error: Exception) -> str:
    return failure(DRIVER, error).error


def test_an_exception_is_told_as_python_tells_it_on_one_line():
    assert raised(ValueError("bad\n  value")) == "ValueError: bad value"
    assert raised(AssertionError()) == "AssertionError"


def test_a_strange_exception_is_told_all_the_same():
    class Strange(Exception):
        @property
        def cause(self):
            raise RuntimeError("no cause")

        def __str__(self):
            raise RuntimeError("no words")

    circular = ValueError("round and round")
    circular.cause = circular
    assert "Strange" in raised(Strange())
    assert raised(circular) == "ValueError: round and round"


def test_a_port_that_was_lost_is_told_from_other_failures():
    assert lost_a_port(of(DRIVER, "DistNetworkError: code: -98, name: EADDRINUSE"))
    assert lost_a_port(of(DRIVER, "OSError: [Errno 98] Address already in use"))
    assert not lost_a_port(OWN)


def test_what_a_worker_of_ray_raised_counts_and_not_what_ray_makes_of_it():
    ray = pytest.importorskip("ray")
    boom = ray.exceptions.RayTaskError("fit", "Traceback ...\nValueError: boom", ValueError("boom"))
    assert raised(boom.as_instanceof_cause()) == "ValueError: boom"
    assert raised(boom) == "ValueError: boom"


def test_what_an_actor_raised_when_it_was_made_counts():
    ray = pytest.importorskip("ray")
    text = "Traceback (most recent call last):\nRuntimeError: no room for the KV cache"
    cause = ray.exceptions.RayTaskError("__init__", text, RuntimeError("no room"))
    assert raised(ray.exceptions.ActorDiedError(cause)) == "RuntimeError: no room for the KV cache"
