"""RadCliQ-v1 (Yu et al., 2023): the linear model of RadGraph F1, BERTScore and SembScore that best
predicts how many errors radiologists count in a report. Turned, so that higher is better.

The published number is -1.44 where its three inputs are 1 and 2.45 where they are 0, and it could
reach 12.6, because BERTScore is rescaled by a baseline of .847, under which it has values down to
-5.5. In a reward of that range a response without a report, which earns the lower bound, would lie
ten below a report that has nothing right, and beside it all reports of a group would look alike. So
the reward is the logistic function of the negated number: strictly monotone, nearly linear where
reports are, and on the scale of the other rewards. The number of a report is recovered from it as

    RadCliQ-v1 = log(1 / value - 1)

and that of a test set as the mean of these, not from the mean of the rewards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

from reward_sdk.errors import ConfigError
from reward_sdk.models import Graph
from reward_sdk.models.annotator import Annotator
from reward_sdk.registry import reward
from reward_sdk.rewards.bertscore import BertScore, load_bertscore
from reward_sdk.rewards.cider import read_reports
from reward_sdk.rewards.clinical import (
    Precision,
    embeddings_similarity,
    entities_and_relations_f1,
    shared_chexbert,
    shared_radgraph,
)
from reward_sdk.types import Outcome, Sample

if TYPE_CHECKING:
    from reward_sdk.models.chexbert import Reading

# CXR-Report-Metric's: mean and scale that standardise an input, and its weight. BLEU-2, which has a
# weight of 4e-12 there, and the intercept of 2e-10 are left out.
_RADGRAPH = (0.53792312, 0.30282584, -0.377083683)
_BERTSCORE = (0.61757256, 0.22430938, -0.370300100)
_SEMBSCORE = (0.76479421, 0.25394391, -0.252616218)

_LAYER, _BASELINE = 5, 0.8473319  # of distilroberta-base in bert-score, that of F1


def turned_radcliq(radgraph: float, bertscore: float, sembscore: float) -> float:
    """The reward of three inputs: 1 / (1 + exp(RadCliQ-v1)).

    Args:
        radgraph: mean F1 of entities and relations, in [0, 1].
        bertscore: F1 of BERTScore before it is rescaled, in [0, 1].
        sembscore: cosine of CheXbert's embeddings, in [-1, 1].
    """
    inputs = radgraph, (bertscore - _BASELINE) / (1 - _BASELINE), sembscore
    models = zip(inputs, (_RADGRAPH, _BERTSCORE, _SEMBSCORE), strict=True)
    return 1 / (1 + exp(sum(weight * (x - mean) / scale for x, (mean, scale, weight) in models)))


class RadCliQ:
    """RadCliQ-v1 as a reward, of three parts; defined for every two texts.

    Args:
        chexbert: reads reports for SembScore.
        radgraph: makes the graphs of the original RadGraph model.
        bertscore: BERTScore of the fifth layer of distilroberta-base, with idf weights.
    """

    name = "radcliq"
    bounds = (turned_radcliq(0.0, 0.0, -1.0), turned_radcliq(1.0, 1.0, 1.0))
    needs = frozenset({"report", "reference"})

    def __init__(
        self, chexbert: Annotator[Reading], radgraph: Annotator[Graph], bertscore: BertScore
    ) -> None:
        self._chexbert, self._radgraph, self._bertscore = chexbert, radgraph, bertscore

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        texts = [(_spaced(s.report or ""), _spaced(s.reference or "")) for s in samples]
        inputs = zip(
            (entities_and_relations_f1(*pair) for pair in self._radgraph.pairs(samples)),
            self._bertscore.f1(texts),
            (embeddings_similarity(*pair) for pair in self._chexbert.pairs(samples)),
            strict=True,
        )
        return [Outcome(turned_radcliq(*three)) for three in inputs]


def _spaced(text: str) -> str:
    """The text with single blanks, as BERTScore is given it in CXR-Report-Metric."""
    return re.sub(" +", " ", text)


@reward("radcliq")
def radcliq(
    corpus: str,
    bertscore: str = "distilroberta-base",
    chexbert: str | None = None,
    chexbert_tokenizer: str = "bert-base-uncased",
    radgraph: str = "radgraph",
    radgraph_tokenizer: str | None = None,
    precision: Precision = "float32",
    device: str = "cpu",
) -> RadCliQ:
    """RadCliQ-v1, turned so that higher is better, in [0, .81]: 1 / (1 + exp(RadCliQ-v1)).

    Args:
        corpus: file of reports by which rare tokens weigh more in BERTScore, best the training
            references; for the published number of a test set, its references. See `read_reports`.
            Read once, when the reward is built.
        bertscore: folder of distilroberta-base with its tokenizer, or its name on the hub.
        chexbert: file of CheXbert's checkpoint; by default the place where f1chexbert keeps it.
        chexbert_tokenizer: folder with BERT's `vocab.txt`, or a name on the hub.
        radgraph: "radgraph", looked for where the radgraph package keeps it, or a folder of this
            name. RadCliQ is defined by this model and not by RadGraph-XL.
        radgraph_tokenizer: folder with the `vocab.txt` and `config.json` of RadGraph's BERT; by
            default what the model's configuration names.
        precision: type of CheXbert's matrix products: "float32" gives the published number,
            "bfloat16" is faster where the processor has it.
        device: a torch device.

    Raises:
        ConfigError: something is missing or no model of this kind, as the loader of each says it,
            or the corpus cannot be read or holds fewer than two reports.
    """
    if Path(radgraph).name != "radgraph":
        raise ConfigError(
            f"radgraph: {radgraph!r} is not the model that RadCliQ is defined by: name a folder "
            "'radgraph', or leave the key out"
        )
    reports = [_spaced(report) for report in read_reports(corpus)]
    return RadCliQ(
        shared_chexbert(chexbert, chexbert_tokenizer, precision, device),
        shared_radgraph(radgraph, radgraph_tokenizer, device),
        load_bertscore(bertscore, _LAYER, device, reports),
    )
