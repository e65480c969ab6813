"""What the clinical rewards cost, against the ways of the packages that they are checked with:
f1chexbert's (one report at a time, float32) and radgraph's. Run it with `make bench-clinical`.

The networks have their published sizes and random weights, in files of the published formats. The
reports are IU-XRay's. f1chexbert does not run with transformers 5: its way is its own loop over
transformers' BertModel. The rule labeler is scored on gold labels where `../shared` has them.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from support.annotations import read_annotation
from support.iu_reports import GOLD, gold_agreement, iu_findings
from support.tiny_bert import LETTERS, SPECIAL
from support.tiny_radgraph import write_radgraph
from transformers import BertConfig, BertModel, BertTokenizer, PreTrainedTokenizerBase

from reward_sdk.commands.networks import seconds, share_of_product
from reward_sdk.models.annotator import Annotator
from reward_sdk.models.chexbert import load_chexbert
from reward_sdk.models.radgraph import load_radgraph
from reward_sdk.models.rule_labeler import label_reports
from reward_sdk.observations import OBSERVATIONS
from reward_sdk.rewards.findings_score import findings_score
from reward_sdk.text import tokens, wrap_report
from reward_sdk.types import Sample

GROUP = 8


def write_bert_base(folder: Path, reports: list[str]) -> Path:
    """Vocabulary, of the reports' words, and configuration of a BERT-base."""
    words = sorted({word for report in reports for word in tokens(report)})
    pieces = ["##" + letter for letter in LETTERS]
    known = list(dict.fromkeys([*SPECIAL, *LETTERS, *pieces, *"0123456789.,:;-()/%", *words]))
    vocabulary = [*known, *(f"[unused{i}]" for i in range(30522 - len(known)))]
    BertConfig().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return folder


def groups_of(reports: list[str]) -> list[list[str]]:
    """GRPO groups: a reference, then 8 responses."""
    size = GROUP + 1
    return [reports[i : i + size] for i in range(0, len(reports) - size + 1, size)]


def score_groups(groups: list[list[str]], annotate: Callable[[list[str]], list]) -> float:
    """Seconds for all groups, each reference met before (in an earlier group or epoch)."""
    batches = [
        [Sample(f"<report>{response}</report>", reference) for response in responses]
        for reference, *responses in groups
    ]

    def run() -> None:
        for batch in batches:
            annotator = Annotator(annotate)
            annotator._references[batch[0].reference or ""] = object()
            annotator.pairs(batch)

    return seconds(run, times=2)


def label_groups(groups: list[list[str]], annotate: Callable[[list[str]], object]) -> float:
    """Seconds for all groups where every response and its reference are read anew."""
    texts = [[t for r in responses for t in (r, reference)] for reference, *responses in groups]
    return seconds(lambda: [annotate(group) for group in texts], times=2)


def write_chexbert_base(path: Path) -> tuple[BertModel, list[torch.nn.Linear]]:
    """A checkpoint of published size with random parameters, and the network that it holds."""
    torch.manual_seed(0)
    model = BertModel(BertConfig()).eval()
    heads = [torch.nn.Linear(768, 2 if name == "No Finding" else 4) for name in OBSERVATIONS]
    state = {f"module.bert.{name}": tensor for name, tensor in model.state_dict().items()}
    for i, head in enumerate(heads):
        state |= {f"module.linear_heads.{i}.{n}": t for n, t in head.state_dict().items()}
    torch.save({"model_state_dict": state}, path)
    return model, heads


def chexbert(folder: Path, bert: Path, reports: list[str]) -> None:
    path = folder / "chexbert.pth"
    model, heads = write_chexbert_base(path)
    words = BertTokenizer.from_pretrained(bert)

    def one_by_one(texts: list[str]) -> list[list[int]]:
        labels = []
        with torch.no_grad():
            for text in texts:
                ids = torch.tensor([words(text)["input_ids"]])
                first = model(ids, attention_mask=torch.ones_like(ids, dtype=torch.float))[0][:, 0]
                labels.append([head(first).argmax(1).item() for head in heads])
        return labels

    classes = (None, 1, 0, -1)
    expected = [[classes[c] for c in row] for row in one_by_one(reports)]
    theirs = seconds(lambda: one_by_one(reports), times=2) / len(reports)
    groups = groups_of(reports)
    all_anew = label_groups(groups, one_by_one) / len(groups)
    size = sum(len(words(text)["input_ids"]) for text in reports)
    for precision in ("float32", "bfloat16"):
        ours = load_chexbert(str(path), str(bert), precision)
        found = [[labels[name] for name in OBSERVATIONS] for labels in ours(reports)]
        cells = [
            a == b for pair in zip(expected, found, strict=True) for a, b in zip(*pair, strict=True)
        ]
        batched = seconds(lambda ours=ours: ours(reports)) / len(reports)
        grouped = score_groups(groups, ours) / len(groups)
        dtype = getattr(torch, precision)
        share, limit = share_of_product(
            model.config, size, batched * len(reports), dtype, device="cpu"
        )
        print(
            f"CheXbert {precision}: {theirs / batched:.1f} times f1chexbert's way per new report "
            f"({1e3 * batched:.0f} ms, {1e3 * theirs:.0f} ms), {all_anew / grouped:.1f} times "
            f"per group of {GROUP} whose reference is known ({1e3 * grouped:.0f} ms, "
            f"{1e3 * all_anew:.0f} ms); labels equal {sum(cells) / len(cells):.2%}; "
            f"{share:.2f} of a matrix product's {limit / 1e9:.0f} GFLOP/s"
        )


def radgraph(folder: Path, bert: Path, reports: list[str]) -> None:
    Base = PreTrainedTokenizerBase
    Base.encode_plus = Base.__call__
    Base.build_inputs_with_special_tokens = lambda self, ids: [
        self.cls_token_id, *ids, self.sep_token_id
    ]  # fmt: skip
    from radgraph import RadGraph

    path = write_radgraph(
        folder / "radgraph-xl", bert, hidden=150, bias=(-0.8, -2.5)
    )  # some 50 entities a report
    with contextlib.redirect_stdout(io.StringIO()):
        package = RadGraph(model_type=path.name, model_cache_dir=str(folder), cuda=-1)
    ours = load_radgraph(str(path))
    lower = [report.lower() for report in reports]
    theirs = seconds(lambda: package(lower), times=2) / len(lower)
    batched = seconds(lambda: ours(lower), times=2) / len(lower)
    groups = groups_of(lower)
    all_anew = label_groups(groups, package) / len(groups)
    grouped = score_groups(groups, ours) / len(groups)
    annotations = package(lower)
    expected = [read_annotation(annotations[str(i)]) for i in range(len(lower))]
    equal = sum(a == b for a, b in zip(expected, ours(lower), strict=True))
    print(
        f"RadGraph: {theirs / batched:.1f} times the package per new report "
        f"({1e3 * batched:.0f} ms, {1e3 * theirs:.0f} ms), {all_anew / grouped:.1f} times per "
        f"group of {GROUP} whose reference is known; annotations equal {equal} of {len(lower)}, "
        f"with {sum(map(len, expected))} entities"
    )


def rules(reports: list[str]) -> None:
    texts = [f"{report} {i}" for i, report in enumerate(reports)]  # none seen before
    taken = seconds(lambda: label_reports(texts), times=1)
    print(f"rule labeler: {len(texts) / taken:,.0f} reports/s")
    score = findings_score()
    samples = [
        Sample(wrap_report(f"{report} {i}."), f"{other} {i}.")
        for i, (report, other) in enumerate(pairwise(reports))
    ]
    pairs = seconds(lambda: score(samples), times=1)
    print(
        f"findings_score: {len(samples) / pairs:,.0f} new pairs/s, "
        f"{pairs / len(samples) / (2 * taken / len(texts)):.1f} times the labeler's time for both"
    )
    if not GOLD.exists():
        return
    for name, measured in gold_agreement(label_reports).items():
        print(
            f"  {name:18} n {measured.positive:4}  precision {measured.precision:.2f}  recall "
            f"{measured.recall:.2f}  F1 {measured.f1:.3f}"
        )


def main() -> None:
    findings = list(iu_findings().values())
    reports = random.Random(0).sample(findings, 64)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bert = write_bert_base(folder / "bert", findings)
        chexbert(folder, bert, reports)
        radgraph(folder, bert, reports[:27])
    rules(findings)


if __name__ == "__main__":
    main()
