"""A RadGraph folder with random weights, made by the radgraph package's own constructor."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

LABELS = {
    "radgraph": ("ANAT-DP", "OBS-DP", "OBS-DA", "OBS-U"),
    "radgraph-xl": (
        "Anatomy::definitely present", "Observation::definitely present",
        "Observation::definitely absent", "Observation::uncertain",
    ),
}  # fmt: skip
RELATIONS = ("modify", "located_at", "suggestive_of")


@contextmanager
def old_tokenizers() -> Iterator[None]:
    """transformers 5 with the two methods that the package calls, so that it runs by itself."""
    from radgraph.allennlp.common import cached_transformers
    from transformers import PreTrainedTokenizerBase as Base

    def build(self, first, second=None):
        ids = [self.cls_token_id, *first, self.sep_token_id]
        return ids if second is None else [*ids, *second, self.sep_token_id]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Base, "encode_plus", Base.__call__, raising=False)
        patch.setattr(Base, "build_inputs_with_special_tokens", build, raising=False)
        yield
    cached_transformers._tokenizer_cache.clear()
    cached_transformers._model_cache.clear()


def write_radgraph(
    folder: Path, tokenizer: Path, hidden: int = 30, bias: tuple[float, float] = (0.3, 0.3)
) -> Path:
    """The folder, named after its model, with `config.json`, `vocabulary/` and `weights.th`.

    Args:
        folder: named "radgraph" or "radgraph-xl".
        tokenizer: its BERT's vocabulary and configuration; its path becomes the BERT's name.
        hidden: width of the heads; 150 in the published models.
        bias: of the scores of entities and of relations: the lower, the fewer are found.
    """
    from radgraph.allennlp.data import Vocabulary
    from radgraph.allennlp.modules import text_field_embedders, token_embedders
    from radgraph.dygie.models.dygie import DyGIE

    bert = {"model_name": str(tokenizer), "max_length": 512}
    model = {
        "feature_size": 20,
        "feedforward_params": {"num_layers": 2, "hidden_dims": hidden, "dropout": 0.4},
        "loss_weights": {"ner": 0.2, "relation": 1.0, "coref": 0.0, "events": 0.0},
        "max_span_width": 12,
        "modules": {
            "ner": {},
            "coref": {"spans_per_word": 0.3, "max_antecedents": 100, "coref_prop": 0},
            "relation": {"spans_per_word": 0.5},
            "events": {
                "trigger_spans_per_word": 0.3, "argument_spans_per_word": 0.8,
                "loss_weights": {"trigger": 1.0, "arguments": 1.0},
            },
        },
        "target_task": "relation",
    }  # fmt: skip
    config = {
        "dataset_reader": {"max_span_width": 12, "token_indexers": {"bert": bert}},
        "model": model
        | {"type": "dygie", "initializer": {}, "module_initializer": {}}
        | {"embedder": {"token_embedders": {"bert": bert}}},
    }
    words = folder / "vocabulary"
    words.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (words / "non_padded_namespaces.txt").write_text("*labels\n*tags\n")
    for kind, names in (("ner", LABELS[folder.name]), ("relation", RELATIONS)):
        text = "\n".join(["", *names])
        (words / f"{folder.name}__{kind}_labels.txt").write_text(text)
    torch.manual_seed(0)
    embedder = token_embedders.PretrainedTransformerMismatchedEmbedder(**bert)
    network = DyGIE(
        vocab=Vocabulary.from_files(str(words)),
        embedder=text_field_embedders.BasicTextFieldEmbedder({"bert": embedder}),
        **json.loads(json.dumps(model)),
    )
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if "transformer_model" in name and name.endswith("weight") and tensor.ndim == 2:
                tensor.normal_(0, 1.5 / tensor.shape[1] ** 0.5)
            elif "scorer" in name and name.endswith("bias"):
                tensor.fill_(bias["relation" in name])
            elif "scorer" in name or "feedforward" in name:
                tensor.mul_(3)  # else all spans score alike, and rounding decides
    torch.save(network.state_dict(), folder / "weights.th")
    return folder
