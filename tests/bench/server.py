"""What serving costs: `reward-sdk serve` under the load of a GRPO rollout, against the same rewards
in process and against a plain Flask server that scores one request at a time. Run it with
`make bench-server`.

Every request holds one sample and comes over a connection of its own, as OpenRLHF 0.11.2 does it
(`POST /get_reward`). Samples are IU-XRay FINDINGS in groups of 8 with one reference. CheXbert has
its published size and random weights; Flask's is used as f1chexbert is, one text after the other.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import psutil
from clinical import write_bert_base, write_chexbert_base
from support.iu_reports import iu_findings

from reward_sdk.reward_set import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import Sample

GROUP = 8
TEXT_SET = {"rouge_l": {"weight": 0.45}, "bleu": {"weight": 0.45}, "findings_f1": {"weight": 0.3},
            "format": {"weight": 0.1}}  # fmt: skip
PROMPT = "[INST] Describe the findings. [/INST]"

FLASK = """
import sys, logging, json
from flask import Flask, request
logging.getLogger("werkzeug").setLevel(logging.ERROR)
logging.getLogger("werkzeug").disabled = True
import flask.cli
flask.cli.show_server_banner = lambda *_: None
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import Sample

if sys.argv[2] == "text":
    rewards = RewardSet.from_config(json.loads(sys.argv[3]))
    def total(response, reference):
        return rewards.score([Sample(response, reference)])[0].total
else:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer
    from reward_sdk.observations import OBSERVATIONS
    weights, tokenizer = json.loads(sys.argv[3])
    words, model = BertTokenizer.from_pretrained(tokenizer), BertModel(BertConfig()).eval()
    heads = [torch.nn.Linear(768, 2 if name == "No Finding" else 4) for name in OBSERVATIONS]
    def labels(text):
        ids = torch.tensor([words(text)["input_ids"]])
        with torch.no_grad():
            first = model(ids, attention_mask=torch.ones_like(ids))[0][:, 0]
            return [head(first).argmax(1).item() for head in heads]
    def total(response, reference):
        a = labels(response.removeprefix("<report> ").removesuffix(" </report>"))
        return float(a == labels(reference))

app = Flask(__name__)

@app.post("/get_reward")
def get_reward():
    body = request.get_json()
    totals = []
    for query, prompt, label in zip(body["query"], body["prompts"], body["labels"]):
        totals.append(total(query[len(prompt):].strip(), json.loads(label)["report"]))
    return {"rewards": totals, "scores": totals, "extra_logs": {}}

app.run(port=int(sys.argv[1]), threaded=False)
"""

NOTHING = """
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
class Query(BaseModel):
    query: list[str]
    prompts: list[str]
    labels: list
app = FastAPI()
@app.post("/get_reward")
async def get_reward(query: Query):
    return {"rewards": [0.5]}
uvicorn.run(app, port=8805, access_log=False, log_level="warning")
"""


def groups(number: int) -> list[tuple[str, str]]:
    """(report, reference) of so many samples, eight of one reference in a row."""
    reports = list(iu_findings().values())
    random.Random(0).shuffle(reports)
    pairs = []
    while len(pairs) < number:
        reference, *responses = (reports.pop() for _ in range(GROUP + 1))
        pairs += [(response, reference) for response in responses]
        if len(reports) < GROUP + 1:
            reports = [f"{report} " for report in iu_findings().values()]
    return pairs[:number]


def request(report: str, reference: str) -> bytes:
    label = json.dumps({"id": "s", "report": reference})
    query = f"{PROMPT} {wrap_report(report)}"
    body = json.dumps({"query": [query], "prompts": [PROMPT], "labels": [label]}).encode()
    head = (
        "POST /get_reward HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


@contextmanager
def running(port: int, *command: str) -> Iterator[psutil.Process]:
    process = subprocess.Popen(command)
    try:
        while True:
            try:
                asyncio.run(load(port, [request("Clear.", "Clear.")], 1))
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError(f"{command[0]} ended") from None
                time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


async def load(port: int, requests: list[bytes], concurrency: int) -> list[float]:
    """Seconds of each request."""
    queue, seconds = list(requests), []

    async def worker() -> None:
        while queue:
            message = queue.pop()
            began = time.perf_counter()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(message)
            answer = await reader.read()
            writer.close()
            assert b" 200 " in answer[:20], answer[:500]
            assert b'"rewards"' in answer
            seconds.append(time.perf_counter() - began)

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return seconds


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def measure(
    name: str, port: int, process: psutil.Process, pairs: list[tuple[str, str]], concurrency: int
) -> tuple[float, float]:
    """Prints one line; gives samples/s and processor seconds per sample."""
    requests = [request(*pair) for pair in reversed(pairs)]  # the load takes them from the end
    before, began = cpu(process), time.perf_counter()
    seconds = asyncio.run(load(port, requests, concurrency))
    wall = time.perf_counter() - began
    each = (cpu(process) - before) / len(pairs)
    cuts = statistics.quantiles(seconds, n=100)
    p50, p95, p99 = (1000 * cuts[i - 1] for i in (50, 95, 99))
    print(
        f"  {name:22} {concurrency:4} at a time {len(pairs) / wall:8.1f} samples/s"
        f"   p50 {p50:7.1f} p95 {p95:7.1f} p99 {p99:7.1f} ms"
        f"   {1e6 * each:7.0f} us of processor per sample"
    )
    return len(pairs) / wall, each


def in_process(batch: int) -> float:
    """Processor seconds per sample without a server."""
    samples = [Sample(wrap_report(report), reference) for report, reference in groups(2000)]
    rewards = RewardSet.from_config(TEXT_SET)
    rewards.score([Sample(wrap_report("Clear."), "Clear.")])  # imports
    began = time.process_time()
    for i in range(0, len(samples), batch):
        rewards.score(samples[i : i + batch])
    return (time.process_time() - began) / len(samples)


def text(folder: Path) -> None:
    pairs = groups(2000)
    costs = {}
    for batch in (1, 64):
        # In a new process, as a server is one: the second time, texts are known.
        command = [sys.executable, __file__, "in-process", str(batch)]
        costs[batch] = min(float(subprocess.check_output(command)) for _ in range(3))
        print(
            f"  in process, {batch:2} a call: {1e6 * costs[batch]:.0f} us of processor per sample"
        )
    path = folder / "text.yaml"
    path.write_text(json.dumps({"rewards": TEXT_SET}))
    serve = str(Path(sys.executable).with_name("reward-sdk"))
    at_64 = 0.0
    for concurrency in (1, 16, 64, 256):
        with running(8801, serve, "serve", "--set", str(path), "--port", "8801") as process:
            _, each = measure("reward-sdk serve", 8801, process, pairs, concurrency)
            if concurrency == 64:
                at_64 = each
    with running(8802, sys.executable, "-c", FLASK, "8802", "text", json.dumps(TEXT_SET)) as flask:
        _, theirs = measure("Flask", 8802, flask, pairs, 64)
    with running(8805, sys.executable, "-c", NOTHING) as nothing:
        _, floor = measure("FastAPI, doing nothing", 8805, nothing, pairs, 64)
    print(
        f"text set, 64 at a time: {at_64 / costs[1]:.2f} times the processor time of single calls "
        f"in process, {at_64 / costs[64]:.2f} times that of batches of 64, "
        f"{at_64 / theirs:.2f} times Flask's; without the {1e6 * floor:.0f} us of an empty FastAPI "
        f"endpoint {(at_64 - floor) / costs[1]:.2f} times single calls"
    )


def model(folder: Path) -> None:
    bert = write_bert_base(folder / "bert", list(iu_findings().values()))
    weights = folder / "chexbert.pth"
    write_chexbert_base(weights)
    path = folder / "model.yaml"
    settings = {"model": str(weights), "tokenizer": str(bert)}
    serve = str(Path(sys.executable).with_name("reward-sdk"))
    pairs = groups(256)
    arguments = json.dumps([str(weights), str(bert)])
    with running(8803, sys.executable, "-c", FLASK, "8803", "model", arguments) as flask:
        theirs, _ = measure("Flask, float32", 8803, flask, pairs[:32], 16)
    for precision in ("float32", "bfloat16"):
        path.write_text(
            json.dumps({"rewards": {"chexbert_f1": {**settings, "precision": precision}}})
        )
        rates = {}
        for concurrency in (1, 16, 64, 256):
            with running(8804, serve, "serve", "--set", str(path), "--port", "8804") as process:
                some = pairs[: max(32, min(256, 4 * concurrency))]
                name = f"serve, {precision}"
                rates[concurrency], _ = measure(name, 8804, process, some, concurrency)
        print(f"model set, {precision}, 64 at a time: {rates[64] / theirs:.1f} times Flask")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        text(Path(name))
        model(Path(name))


if __name__ == "__main__":
    if sys.argv[1:2] == ["in-process"]:
        print(in_process(int(sys.argv[2])))
    else:
        main()
