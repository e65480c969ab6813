"""BERTScore: how alike the words of report and reference are in a language model's eyes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reward_sdk.errors import ConfigError
from reward_sdk.models.folders import check_folder
from reward_sdk.registry import reward
from reward_sdk.types import Outcome, Sample


class BertScore:
    """F1 of BERTScore (Zhang et al., 2020, arXiv 1904.09675), by the package bert-score.

    Without a baseline, so that real encoders give .8 and more to any two reports. The model's own
    tokenizer reads the texts as they are; what is longer than the model takes is cut off. Two blank
    texts score 1, one blank text 0. A pair whose precision or recall is not positive scores 0,
    because the harmonic mean is defined for positive numbers only; so does one with a text that has
    only tokens without weight.

    Args:
        score: (responses, references) -> (precision, recall, F1), one number a pair each.
    """

    name = "bertscore"
    bounds = (0.0, 1.0)
    needs = frozenset({"report", "reference"})

    def __init__(self, score: Callable[[list[str], list[str]], Any]) -> None:
        self._score = score

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        pairs = [(sample.report or "", sample.reference or "") for sample in samples]
        return [Outcome(value) for value in self.f1(pairs)]

    def f1(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """F1 of each (response, reference), in [0, 1]."""
        # The package fails on a blank text (transformers 5), so it never sees one.
        pairs = [(response.strip(), reference.strip()) for response, reference in pairs]
        values = [float(not response and not reference) for response, reference in pairs]
        full = [i for i, pair in enumerate(pairs) if all(pair)]
        if full:
            columns = self._score([pairs[i][0] for i in full], [pairs[i][1] for i in full])
            rows = zip(*(column.tolist() for column in columns), strict=True)
            for i, (precision, recall, f1) in zip(full, rows, strict=True):
                values[i] = min(f1, 1.0) if min(precision, recall) > 0 else 0.0  # rounding
        return values


@reward("bertscore")
def bertscore(model: str, num_layers: int | None = None, device: str = "cpu") -> BertScore:
    """F1 of BERTScore with the reference, in [0, 1], every token with the same weight.

    Args:
        model: folder of a Hugging Face encoder with its tokenizer, or its name on the hub.
        num_layers: the layer whose embeddings are compared; by default bert-score's choice for the
            model, which it has for hub names only.
        device: where the encoder runs, as torch names it.
    """
    return load_bertscore(model, num_layers, device)


def load_bertscore(
    model: str, num_layers: int | None, device: str, corpus: Sequence[str] = ()
) -> BertScore:
    """Loads what computes BERTScore.

    Args:
        model: folder of a Hugging Face encoder with its tokenizer, or its name on the hub.
        num_layers: the layer whose embeddings are compared; None for bert-score's choice.
        device: where the encoder runs, as torch names it.
        corpus: reports, none of them blank, by which a token that fewer of them have weighs more
            (idf); without any, all tokens weigh the same.

    Raises:
        ConfigError: bert-score or the model is missing, there is no such layer, the weights are not
            finite, or `check_folder` refuses the folder.
    """
    try:
        from bert_score import BERTScorer  # pyright: ignore[reportMissingImports]
        from bert_score.utils import model2layers  # pyright: ignore[reportMissingImports]
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(f"BERTScore needs pip install 'valor-rrg[bertscore]' ({error})") from None
    if num_layers is None:
        if model not in model2layers:
            raise ConfigError(f"num_layers: bert-score has no default for {model!r}: name a layer")
        num_layers = model2layers[model]
    # Absolute, because bert-score takes names that begin with "scibert" for downloads.
    path = str(Path(model).resolve()) if Path(model).is_dir() else model
    check_folder(Path(path))
    try:
        # Without threads, which bert-score has as processes: forks of one that runs torch.
        scorer = BERTScorer(
            path, num_layers=num_layers, device=device, idf=bool(corpus), nthreads=0
        )
        # Every word as one within a text: what the package asks of RoBERTa, and transformers 5 no
        # longer hears.
        name = scorer._tokenizer.name_or_path
        scorer._tokenizer = AutoTokenizer.from_pretrained(name, add_prefix_space=True)
    except AssertionError as error:
        raise ConfigError(f"num_layers: {error}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"model {model!r} does not load: name the folder of an encoder and its tokenizer, "
            f"or a model that the hub has ({' '.join(str(error).split())})"
        ) from error
    tensors = scorer._model.state_dict()
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ConfigError(f"model {model!r}: {', '.join(broken[:3])}: NaN or infinity")
    # A tokenizer folder may not say how long a text can be. Two positions are kept back, because
    # RoBERTa counts from 2.
    positions = getattr(scorer._model.config, "max_position_embeddings", 512)
    if scorer._tokenizer.model_max_length > positions:
        scorer._tokenizer.model_max_length = positions - 2
    if corpus:
        scorer.compute_idf(corpus)
    return BertScore(scorer.score)
