"""What a running server answers, and that its numbers are those of the same set in process."""

import asyncio
import base64
import io
import json
import re
from dataclasses import replace

import httpx
import pytest
from PIL import Image
from support.serving import REPORTS, TEXT, Server, samples

from reward_sdk.client import RewardClient
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import ImageRef, Sample


@pytest.fixture(scope="module")
def in_process(served):
    return RewardSet.from_config(served.rewards)


def both(served, in_process, some, step):
    """Scores over HTTP and in process."""
    with RewardClient(served.server.url) as client:
        return client.score(some, step), in_process.score(some, step)


@pytest.mark.parametrize("step", [1, 4])
def test_scores_over_http_are_those_in_process(served, in_process, step):
    # CheXbert packs its batches without padding, so that even they agree to the last digit here;
    # in general a batch's composition may move a logit by rounding, see test_chexbert. It does so
    # for images, which this server may have met before, in other batches.
    found, expected = both(served, in_process, samples(served.images), step)
    for one, other in zip(found, expected, strict=True):
        for name, part in other.parts.items():
            value = one.parts[name].value
            if name == "image_text" and part.value is not None:
                assert value == pytest.approx(part.value, abs=5e-5)
            else:
                assert (value, one.parts[name].status) == (part.value, part.status)
        assert one.total == pytest.approx(other.total, abs=5e-5)
        assert one.logs == pytest.approx(other.logs, abs=5e-5)


def test_reasons_travel(served, in_process):
    found, expected = both(served, in_process, samples(served.images), 4)
    assert found[5].parts["rouge_l"].reason == expected[5].parts["rouge_l"].reason != ""
    assert "missing.png" in found[9].parts["image_text"].reason


def test_an_image_in_the_request_scores_as_its_file_does(served):
    path = served.images / "film1.png"
    sample = Sample(wrap_report(REPORTS[0]), REPORTS[0], ImageRef(str(path)), "s")
    inline = replace(sample, image=ImageRef(data=path.read_bytes()))
    with RewardClient(served.server.url) as client:
        one, other = client.score([sample, inline], 1)
    assert one.parts["image_text"].value == other.parts["image_text"].value is not None


def test_single_samples_asked_for_at_once_score_as_a_batch_does(served, in_process):
    some = samples(served.images)

    async def ask():
        from reward_sdk.client import AsyncRewardClient

        async with AsyncRewardClient(served.server.url) as client:
            return await asyncio.gather(*(client.score([sample], 4) for sample in some))

    found = [score for [score] in asyncio.run(ask())]
    expected = in_process.score(some, 4)
    for one, other in zip(found, expected, strict=True):
        # The composition of a batch, which the machine's load decides, moves the last digits.
        assert one.logs == pytest.approx(other.logs, abs=5e-5)
        assert [p.status for p in one.parts.values()] == [p.status for p in other.parts.values()]


def test_the_answer_carries_the_digest_of_the_set(served, in_process):
    body = {"samples": [{"response": "x"}], "step": 1, "request_id": "mine"}
    answer = served.server.post("/v1/score", body).json()
    assert answer["set"] == in_process.digest
    assert answer["request_id"] == "mine"


def test_rewards_tells_what_is_served(served, in_process):
    info = httpx.get(f"{served.server.url}/v1/rewards").json()
    assert info["set"] == in_process.digest
    assert tuple(info["bounds"]) == in_process.bounds
    assert tuple(info["log_keys"]) == in_process.log_keys
    assert info["needs_step"] is True
    every = {reward["name"]: reward["every"] for reward in info["rewards"]}
    assert every == dict.fromkeys(in_process.names, 1) | {"findings_f1": 4}


def test_a_schedule_without_a_step_is_refused_with_what_to_do(served):
    answer = served.server.post("/v1/score", {"samples": [{"response": "x"}]})
    assert answer.status_code == 422
    assert "must say its policy step" in answer.json()["detail"]


@pytest.fixture(scope="module")
def openrlhf_client(served):
    """OpenRLHF's own HTTP client."""
    agent = pytest.importorskip("openrlhf.utils.agent")
    executor = agent.SingleTurnAgentExecutor(remote_rm_url=[f"{served.server.url}/get_reward"])

    def ask(query, prompt, label):
        [reply] = asyncio.run(executor._fetch_rewards_via_http([query], [prompt], [label]))
        return reply

    return ask


PROMPT = "<s>[INST] <image>\nDescribe. Write between <report> and </report>. [/INST]"
EXPANDED = PROMPT.replace("<image>", "<image>" * 576)


def test_openrlhfs_own_client_gets_the_total_of_the_set(served, in_process, openrlhf_client):
    label = json.dumps({"id": "s", "report": REPORTS[1], "image": "film2.png", "view": "PA"})
    query = f"{EXPANDED} {wrap_report(REPORTS[0])}</s>"
    reply = openrlhf_client(query, PROMPT, label)
    image = ImageRef(str(served.images / "film2.png"), view="PA")
    always = in_process.without_schedule()
    [expected] = always.score([Sample(wrap_report(REPORTS[0]), REPORTS[1], image)])
    assert reply["rewards"] == [pytest.approx(expected.total, abs=5e-5)]
    assert 0 <= reply["scores"][0] <= 1
    logs = {key: [value] for key, value in expected.logs.items()}
    assert reply["extra_logs"] == {**logs, "unscored": [0.0]}


@pytest.mark.parametrize(
    "label",
    ["{broken", '{"report": 3}', "[]", "null", "", "Just the report.", '{"image": "/etc/passwd"}',
     '{"image": "film9.png"}', '{"report": "\\ud800"}'],
)  # fmt: skip
def test_openrlhfs_client_always_gets_finite_numbers_under_the_same_keys(
    in_process, openrlhf_client, label
):
    reply = openrlhf_client(f"{EXPANDED} <report> Clear. </report>", PROMPT, label)
    assert set(reply["extra_logs"]) == {*in_process.log_keys, "unscored"}
    numbers = [reply["rewards"], reply["scores"], *reply["extra_logs"].values()]
    assert all(isinstance(x, float) and abs(x) < 10 for column in numbers for x in column)


def test_a_label_that_cannot_be_read_leaves_the_sample_unscored(openrlhf_client):
    reply = openrlhf_client(f"{EXPANDED} <report> Clear. </report>", PROMPT, "{broken")
    assert reply["extra_logs"]["unscored"] == [1.0]


def test_a_plain_label_is_the_reference(openrlhf_client):
    reply = openrlhf_client(f"{EXPANDED} {wrap_report(REPORTS[0])}", PROMPT, REPORTS[0])
    assert reply["extra_logs"]["rouge_l"] == [1.0]


def verify(**row):
    output = [{"type": "message", "content": [{"type": "output_text", "text": row.pop("text")}]}]
    return {"responses_create_params": {"input": "Describe."}, "response": {"output": output}} | row


def test_verify_answers_with_the_request_and_components_that_sum_to_the_reward(served):
    path = str(served.images / "film0.png")
    body = verify(text=wrap_report(REPORTS[0]), reference=REPORTS[1], image=path, uuid=7)
    answer = served.server.post("/verify", body).json()
    assert answer["response"] == body["response"]
    assert answer["uuid"] == 7
    assert answer["reward"] == pytest.approx(sum(answer["reward_components"].values()), abs=1e-9)
    assert answer["rouge_l/applied"] == 1.0
    assert "_ng_failure_class" not in answer


def test_verify_scales_the_components_when_a_part_is_missing(served, in_process):
    answer = served.server.post("/verify", verify(text=wrap_report(REPORTS[0]))).json()
    always = in_process.without_schedule()
    [expected] = always.score([Sample(wrap_report(REPORTS[0]))])
    assert answer["reward"] == pytest.approx(expected.total)
    assert answer["reward"] == pytest.approx(sum(answer["reward_components"].values()), abs=1e-9)


def test_verify_takes_the_image_of_the_prompt(served):
    data = base64.b64encode((served.images / "film3.png").read_bytes()).decode()
    content = [{"type": "input_image", "image_url": f"data:image/png;base64,{data}"}]
    body = verify(text=wrap_report(REPORTS[0]))
    body["responses_create_params"] = {"input": [{"role": "user", "content": content}]}
    assert served.server.post("/verify", body).json()["image_text/applied"] == 1.0


@pytest.mark.parametrize("url", ["https://example.org/x.png", "file:///etc/passwd", None, "data:,"])
def test_verify_fetches_no_image_and_fails_only_what_looks_at_it(served, url):
    body = verify(text=wrap_report(REPORTS[0]))
    content = [{"type": "input_image", "image_url": url}]
    body["responses_create_params"] = {"input": [{"role": "user", "content": content}]}
    answer = served.server.post("/verify", body).json()
    failed = {name for name in served.rewards if answer[f"{name}/failed"]}
    assert failed == {"image_text"}
    assert answer["unscored"] == 0.0
    assert "_ng_failure_class" not in answer


def test_metrics_count_every_part(served):
    name = 'reward_parts_total{reward="bleu",status="ok"}'
    before = served.server.metric(name)
    with RewardClient(served.server.url) as client:
        client.score([Sample("<report> Clear. </report>", "Clear.")] * 70, 1)
    assert served.server.metric(name) == before + 70


def test_openapi_examples_are_accepted(served):
    document = httpx.get(f"{served.server.url}/openapi.json").json()
    tried = 0
    for path, methods in document["paths"].items():
        if "post" not in methods:
            continue
        schema = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
        [example] = document["components"]["schemas"][schema["$ref"].split("/")[-1]]["examples"]
        assert served.server.post(path, example).status_code == 200, path
        tried += 1
    assert tried == 4


def test_the_page_shows_the_rewards_and_loads_nothing_from_elsewhere(served):
    page = httpx.get(f"{served.server.url}/")
    assert page.status_code == 200
    for name in served.rewards:
        assert name in page.text
    assert not re.search(r"""(src|href|action)=["']?(http|//)""", page.text)
    assert "<script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_the_form_scores_one_report_with_an_image(served, in_process):
    form = {"response": REPORTS[0], "reference": REPORTS[1]}
    file = (served.images / "film1.png").read_bytes()
    page = httpx.post(f"{served.server.url}/try", data=form, files={"image": ("x.png", file)})
    image = ImageRef(data=file)
    always = in_process.without_schedule()
    [expected] = always.score([Sample(REPORTS[0], REPORTS[1], image, tags="optional")])
    assert f"<strong>{expected.total:.4f}</strong>" in page.text
    assert f"{expected.parts['image_text'].value:.4f}" in page.text


def tried(served, again="", image=None, **form):
    files = image and {"image": ("x.png", image)}
    answer = httpx.post(
        f"{served.server.url}/try", data={**form, "again": again}, files=files, timeout=60
    )
    assert answer.status_code == 200
    return answer.text


def words(page):
    """What the page says, without its tags, on one line."""
    return " ".join(re.sub("<[^>]+>", " ", page[page.index('id="try"') :]).split())


def test_the_page_says_what_each_reward_read_of_each_finding(served):
    image = (served.images / "film1.png").read_bytes()
    response, reference = "Right pleural effusion. No edema.", "Left pleural effusion."
    page = words(tried(served, image=image, response=response, reference=reference))
    findings, seen = page.split("What findings_f1 read")[1].split("What image_text read")
    assert "Pleural Effusion present, right present, left ✓ yes a wrong side" in findings
    assert "Edema absent not mentioned –" in findings
    assert "Fracture" not in findings  # neither text mentions it
    assert re.search(r"Edema absent not mentioned [+-]\d\.\d\d [✓✗]", seen)
    assert re.search(r"Cardiomegaly not mentioned not mentioned [+-]\d\.\d\d –", seen)


def test_without_a_reference_nothing_is_said_of_one(served):
    page = tried(served, response="Edema.", image=(served.images / "film1.png").read_bytes())
    assert "What <code>image_text</code> read" in page
    assert "What <code>findings_f1</code> read" not in page
    assert ">Reference</th>" not in page


def test_an_image_that_was_tried_is_shown_and_can_be_tried_again(served):
    image = (served.images / "film1.png").read_bytes()
    first = tried(served, image=image, response="Edema.")
    [shown] = re.findall(r'src="data:image/png;base64,([^"]+)"', first)
    with Image.open(io.BytesIO(base64.b64decode(shown))) as opened:
        assert opened.size == (48, 64)
    [key] = re.findall(r'name="again" value="(\w+)" checked', first)
    totals = re.compile(r"<strong>([\d.-]+)</strong>")
    again = tried(served, again=key, response="Edema.")
    assert totals.findall(again) == totals.findall(first)
    assert shown in again
    assert "img-src data:" in httpx.get(served.server.url).headers["content-security-policy"]


def test_a_large_image_is_shown_small(served):
    file = io.BytesIO()
    Image.effect_noise((1500, 700), 50).save(file, "PNG")
    page = tried(served, image=file.getvalue(), response="Edema.")
    [shown] = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    with Image.open(io.BytesIO(base64.b64decode(shown))) as opened:
        assert opened.size == (512, 239)


def test_an_image_that_is_no_longer_kept_is_asked_for_again(served):
    page = tried(served, again="0" * 64, response="Edema.")
    assert "the image is no longer kept: choose its file again" in page


@pytest.mark.parametrize(
    "image", [b"nothing", b"\x89PNG\r\n\x1a\n" + bytes(99), b"II*\0" + bytes(99)]
)
def test_an_image_that_cannot_be_read_leaves_the_other_scores(served, image):
    page = tried(served, image=image, response=REPORTS[0], reference=REPORTS[1])
    assert "image in memory: cannot be read" in page
    assert "6 of 7 rewards, 1 failed</span>, without image_text" in page
    assert not re.search(r"object at 0x|&lt;\w+\.", page)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"response": "x" * 100_001}, "response: more than 100,000 characters"),
        ({"response": "x", "image": "y"}, "image: must be a file"),
    ],
)
def test_what_is_wrong_with_the_form_is_said_on_the_page(served, form, message):
    page = httpx.post(f"{served.server.url}/try", data=form).text
    assert f'<p class="bad">{message}</p>' in page


def test_a_total_of_fewer_rewards_than_the_set_has_says_so(served):
    page = words(tried(served, response=REPORTS[0], reference=REPORTS[1]))
    assert re.search(r"Total [\d.-]+ of [\d.-]+ to [\d.-]+, 6 of 7 rewards, 1 not applicable", page)
    assert ", without image_text" in page
    assert "image_text – not applicable: no image" in page


def test_the_page_and_the_metrics_count_apart_to_what_a_reward_does_not_apply(served):
    before = not_applicable(served)
    tried(served, response=REPORTS[0])
    assert not_applicable(served) == before + 1
    page = httpx.get(served.server.url).text
    assert f'<td data-column="not applicable">{before + 1}</td>' in page
    assert 'status="skipped"' not in httpx.get(f"{served.server.url}/metrics").text


def not_applicable(served):
    metrics = httpx.get(f"{served.server.url}/metrics").text
    line = r'reward_parts_total\{reward="image_text",status="not_applicable"\} (\d+)'
    return int(re.search(line, metrics)[1])  # type: ignore[index]


def test_the_form_takes_age_and_indication_and_says_what_is_no_age(served):
    page = tried(served, response=REPORTS[0], age="082Y", indication="Cough.")
    assert 'name="age" value="082Y"' in page
    assert 'name="indication" value="Cough."' in page
    assert "age: no age: &#39;old&#39;" in tried(served, response=REPORTS[0], age="old")


def test_a_response_without_tags_is_read_and_the_page_says_that_the_set_would_not(served):
    wrong = "tags and was read as a report here"
    assert wrong in words(tried(served, response=REPORTS[0]))
    assert wrong not in words(tried(served, response=f"<report> {REPORTS[0]} </report>"))


def test_a_reward_that_cannot_explain_itself_says_why(tmp_path, plugin):
    with Server(tmp_path, {"moody": {}}, environment=plugin) as server:
        page = httpx.post(f"{server.url}/try", data={"response": "Edema."}).text
    assert "It cannot be shown: ValueError: I will not say why" in page
    assert "<strong>1.0000</strong>" in page


def test_what_was_tried_is_shown_as_text(served):
    form = {"response": "<script>alert(1)</script>", "reference": "</textarea><b>"}
    page = httpx.post(f"{served.server.url}/try", data=form)
    assert "<script" not in page.text
    assert "</textarea><b>" not in page.text


@pytest.mark.parametrize("policy", ["skip", "raise", 0.5])
def test_a_server_is_not_ready_before_every_reward_has_been_called(tmp_path, plugin, policy):
    warm = tmp_path / "warm"
    environment = {**plugin, "WARM": str(warm)}
    rewards = {"cold": {"on_failure": policy}, "format": {}}
    with Server(tmp_path, rewards, environment=environment, wait=False) as server:
        Server.until(lambda: "not ready: cold" in server.log())
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        answer = httpx.get(f"{server.url}/readyz")
        assert answer.status_code == 503
        assert "still cold" in answer.json()["waiting_for"]["cold"]
        warm.touch()
        Server.until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200)


def test_a_set_that_cannot_be_built_ends_the_command_before_anything_is_served(tmp_path):
    from click.testing import CliRunner

    from reward_sdk.cli import main

    path = tmp_path / "set.yaml"
    path.write_text("rewards: {rogue_l: {}}")
    done = CliRunner().invoke(main, ["serve", "--set", str(path)])
    assert done.exit_code == 2
    assert "did you mean 'rouge_l'?" in done.output


def test_a_port_that_is_taken_ends_the_command(tmp_path, served):
    from click.testing import CliRunner

    from reward_sdk.cli import main

    path = tmp_path / "set.yaml"
    path.write_text(json.dumps({"rewards": TEXT}))
    port = served.server.url.rsplit(":", 1)[1]
    done = CliRunner().invoke(main, ["serve", "--set", str(path), "--port", port])
    assert done.exit_code == 1
    assert "cannot be served" in done.output
