"""The same samples, the same scores, however a stack asks."""

import pytest
from support.serving import Server
from support.stacks import SET, WAYS, in_process, install, samples, write_films

PACKAGE = {"swift": "swift", "nemo_gym": "nemo_gym", "verifiers": "verifiers"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The set's file, the server's URL, and the samples."""
    folder = tmp_path_factory.mktemp("parity")
    environment = install(folder / "site")
    films = write_films(folder / "films")
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(folder / "site"))
    options = ("--images", str(films))
    with Server(folder, SET, *options, environment=environment) as server:
        yield str(server.set_file), server.url, samples(films)
    patch.undo()


@pytest.fixture(scope="module")
def expected(study):
    return in_process(study[0], study[2])


def test_the_samples_are_of_all_kinds(study, expected):
    totals = [outcome.total for outcome in expected]
    assert totals.count(None) == 5
    assert len({round(total, 6) for total in totals if total is not None}) > 20
    assert any(o.parts["moody"] is None and o.total is not None for o in expected)
    assert any(o.parts["brightness"] is None and o.total is not None for o in expected)
    assert any(o.parts["rouge_l"] is None and o.total is not None for o in expected)


@pytest.mark.parametrize("place", ["in process", "through the server"])
@pytest.mark.parametrize("name", [name for name in WAYS if name != "in process"])
def test_totals_and_parts_are_those_of_the_set(name, place, study, expected):
    way, stack = WAYS[name]
    if stack in PACKAGE:
        pytest.importorskip(PACKAGE[stack])
    if stack == "url" and place == "in process":
        pytest.skip("HTTP only")
    file, url, batch = study
    found = way(url if place == "through the server" else file, batch)
    assert len(found) == len(batch)
    wrong = [
        (sample.id, outcome, want)
        for sample, outcome, want in zip(batch, found, expected, strict=True)
        if not outcome.close_to(want)
    ]
    assert wrong == []
