"""verifiers' own Task scores with a plugged reward, and its NeMo Gym client with our server."""

import asyncio
import base64
import json

import pytest
from support.serving import Server
from support.stacks import SET, in_process, install, samples, write_films

from reward_sdk.adapters import describe

pytestmark = pytest.mark.contract
pytest.importorskip("verifiers")

EXAMPLE = describe("verifiers").example


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verifiers")
    environment = install(folder / "site")
    films = write_films(folder / "films")
    (folder / "rewards.yaml").write_text(json.dumps({"rewards": SET}))
    (folder / "rewards.py").write_text(EXAMPLE)
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(folder / "site"))
    patch.chdir(folder)
    yield folder, films, environment
    patch.undo()


@pytest.fixture(scope="module")
def traces(study):
    """Of every sample: the sample, its trace, and what the set says of it."""
    from contract.verifiers_task import scored

    folder, films, _ = study
    batch = samples(films)
    found = asyncio.run(scored(folder / "rewards.py", batch))
    return list(zip(batch, found, in_process("rewards.yaml", batch), strict=True))


def test_the_trace_s_reward_is_the_set_s_total_and_the_parts_have_their_weights(traces):
    assert len(EXAMPLE.splitlines()) <= 5
    for _, trace, want in traces:
        if want.total is not None:
            assert trace.reward == pytest.approx(want.total)
            assert {n: r.weight for n, r in trace.rewards.items() if r and n in SET} == {
                name: SET[name]["weight"] for name in SET if want.parts[name] is not None
            }


def test_a_part_that_failed_is_none_and_a_metric_says_so(traces):
    [trace, *_] = [trace for sample, trace, _ in traces if sample.id.startswith("poison")]
    assert trace.rewards["moody"] is None
    assert trace.metrics["moody/failed"] == 1.0
    assert trace.metrics["moody/applied"] == 0.0


def test_a_sample_without_any_score_is_an_error_on_its_trace(traces):
    [trace, *_] = [trace for sample, trace, _ in traces if sample.id.startswith("nothing")]
    assert trace.rewards == {"report": None}
    assert "nothing could be scored" in trace.info["error"]
    assert "no reference" in trace.info["error"]


def test_an_image_of_the_prompt_is_seen(study):
    import verifiers.v1 as vf
    from contract.verifiers_task import ReportData, ReportTask, trace_of
    from verifiers.v1.types import ImageUrlContentPart, ImageUrlSource, UserMessage

    folder, films, _ = study
    url = "data:image/png;base64," + base64.b64encode((films / "film0.png").read_bytes()).decode()
    part = ImageUrlContentPart(image_url=ImageUrlSource(url=url))
    data = ReportData(prompt=[UserMessage(content=[part])], reference="Clear.", view="PA")
    reward = vf.RewardFunctionConfig(fn=f"{folder / 'rewards.py'}:report")
    task = ReportTask(data, vf.TaskConfig(rewards={"report": reward}))
    trace = trace_of(task, "<report> Clear. </report>")
    asyncio.run(task.score(trace))
    assert 0.3 < trace.rewards["brightness"].score < 0.7


@pytest.mark.parametrize("name", ["reference", "report", "ground_truth"])
def test_the_reference_is_found_under_each_of_its_names(name, study):
    import verifiers.v1 as vf
    from contract.verifiers_task import ReportData, ReportTask, trace_of

    reward = vf.RewardFunctionConfig(fn=f"{study[0] / 'rewards.py'}:report")
    data = ReportData(prompt="Read.", **{name: "Clear lungs."})
    task = ReportTask(data, vf.TaskConfig(rewards={"report": reward}))
    trace = trace_of(task, "<report> Clear lungs. </report>")
    asyncio.run(task.score(trace))
    assert trace.rewards["rouge_l"].score == 1.0


def test_its_nemo_gym_client_scores_through_the_server(study, tmp_path):
    from contract.verifiers_task import trace_of
    from verifiers.v1.tasksets.nemo_gym.taskset import (
        NeMoGymConfig,
        NeMoGymTask,
        NeMoGymTaskConfig,
        NeMoGymTaskset,
    )

    _, films, environment = study
    rows = [
        {"responses_create_params": {"input": [{"role": "user", "content": "Describe."}]},
         "reference": "Clear lungs.", "image": str(films / "film0.png"), "view": "PA"},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    images = ("--images", str(films))
    with Server(tmp_path / "server", SET, *images, environment=environment) as server:
        config = NeMoGymTaskConfig(resources_url=server.url)
        taskset = NeMoGymTaskset(NeMoGymConfig(dataset=tmp_path / "rows.jsonl", task=config))
        [task] = list(taskset)
        assert isinstance(task, NeMoGymTask)
        trace = trace_of(task, "<report> Clear lungs. </report>")

        async def rollout():
            await task.setup(trace, None)
            await task.score(trace)

        asyncio.run(rollout())
    assert trace.reward == pytest.approx(0.6 + 0.3 - 0.5 * trace.metrics["brightness"] + 0.2)
    assert trace.metrics["rouge_l"] == pytest.approx(1.0)
    assert trace.info["nemo_gym"]["reward_components"]["moody"] == pytest.approx(0.2)


def test_it_is_the_version_that_is_named():
    from importlib.metadata import version

    named = describe("verifiers").facts["Run for real"]
    assert named.startswith(f"verifiers {version('verifiers')},")
