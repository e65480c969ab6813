"""How much memory of a GPU a run needs, estimated before it is started.

Counted are weights in bfloat16, the optimizer (float32 weights and two moments, 12 bytes for every
parameter that trains), gradients, the activations of one micro-batch with its logits, and vLLM's
share of the card, `vllm.gpu_memory_utilization`, which it takes whole. ZeRO divides what it
divides. A constant reserve stands for fragments, buffers and what else is not counted: the tower's
activations, the features of a rollout's images, which a policy keeps, and DeepSpeed's float32 copy
of the gradients. Images are among the tokens of `data.max_len`, however many a sample has. No run
was measured against this yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from valor_plugin.host import reference
from valor_plugin.llava_med import lora
from valor_plugin.llava_med.parts import part_of
from valor_plugin.recipe import Lora

GB = 1e9
_RESERVE = 2.5 * GB  # ours: CUDA's contexts of policy and engine, NCCL's buffers, fragments


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU of the policy.

    Attributes:
        weights: those of the policy.
        reference: those of the KL reference, on the same GPU or in the policy.
        gradients: of what trains.
        optimizer: its states; none where they are offloaded to the CPU.
        activations: those of one micro-batch, and its logits.
        least_engine: what an engine needs at least: weights, and keys and values of one sequence of
            the greatest length.
        share: vLLM's share of its card, in (0, 1).
        colocated: whether an engine is on the same GPU.
        engine_sleeps: whether the engine gives its share back while the policy trains.
        policy_sleeps: whether optimizer and gradients leave the GPU while the engine generates.
    """

    weights: float
    reference: float
    gradients: float
    optimizer: float
    activations: float
    least_engine: float
    share: float
    colocated: bool
    engine_sleeps: bool
    policy_sleeps: bool

    @property
    def training(self) -> float:
        """What the policy needs while it trains."""
        states = self.gradients + self.optimizer + self.activations
        return self.weights + self.reference + states + _RESERVE

    @property
    def waiting(self) -> float:
        """What the policy holds while the engine generates."""
        states = 0 if self.policy_sleeps else self.gradients + self.optimizer
        return self.weights + self.reference + states + _RESERVE

    @property
    def beside(self) -> float:
        """What the policy holds at most on a GPU on which an engine has taken its share."""
        if not self.colocated:
            return 0.0
        return self.waiting if self.engine_sleeps else self.training

    @property
    def card(self) -> float:
        """The memory of the smallest card that will do."""
        engine = (self.least_engine + _RESERVE) / self.share
        return max(self.training, engine, self.beside / (1 - self.share))

    def of(self, total: float) -> float:
        """How much of a card with this memory must be free."""
        return max(self.card, self.beside + self.share * total)

    def __str__(self) -> str:
        parts = {
            "weights": self.weights, "KL reference": self.reference, "gradients": self.gradients,
            "optimizer": self.optimizer, "activations": self.activations,
        }  # fmt: skip
        listed = ", ".join(f"{name} {size / GB:.1f}" for name, size in parts.items())
        return (
            f"about {self.card / GB:.0f} GB a card: {listed} GB; vLLM takes {self.share:.0%} of "
            f"its card and needs {self.least_engine / GB:.1f} GB of it"
        )


def estimate(
    options: Mapping[str, Any],
    trainable: Collection[str],
    adapters: Lora,
    shapes: Mapping[str, tuple[int, ...]],
    language: Any,
) -> Memory:
    """The memory that a run needs.

    Args:
        options: the host's options, by dotted name.
        trainable: parts of the policy that train.
        adapters: sizes of LoRA's matrices, used where "lora" is among `trainable`.
        shapes: name -> shape of every tensor of the model.
        language: transformers' configuration of the language model.
    """
    sizes: Counter[str] = Counter()
    for name, shape in shapes.items():
        sizes[part_of(name)] += prod(shape)
    whole = 2 * sizes.total()
    sizes["lora"] = lora.count_parameters(shapes, adapters.rank)
    trained = sum(sizes[part] for part in trainable)
    stage = options["ds.zero_stage"]
    actor = options["actor.num_nodes"] * options["actor.num_gpus_per_node"]
    divided = [actor if stage >= needed else 1 for needed in (1, 2, 3)]
    by_optimizer, by_gradients, by_weights = divided
    colocated = options["train.colocate_all"]
    beside = colocated or options["train.colocate_actor_ref"]
    if options["algo.kl.init_coef"] == 0:
        kept = 0.0
    elif reference.is_shared(trainable):
        kept = 2 * trained / by_weights
    else:
        kept = whole / by_weights if beside else 0.0
    tensor_parallel = options["vllm.tensor_parallel_size"]
    heads = getattr(language, "num_key_value_heads", None) or language.num_attention_heads
    width = getattr(language, "head_dim", None) or (
        language.hidden_size // language.num_attention_heads
    )
    cached = 4 * language.num_hidden_layers * heads * width * options["data.max_len"]
    return Memory(
        weights=whole / by_weights + (4 * sizes["lora"] if "lora" in trainable else 0),
        reference=kept,
        gradients=2 * trained / by_gradients,
        optimizer=0 if options["ds.adam_offload"] else 12 * trained / by_optimizer,
        activations=_activations(options, language),
        least_engine=(whole + cached) / tensor_parallel,
        share=options["vllm.gpu_memory_utilization"],
        colocated=colocated,
        engine_sleeps=options["vllm.enable_sleep"],
        policy_sleeps=options["ds.enable_sleep"],
    )


def _activations(options: Mapping[str, Any], language: Any) -> float:
    """Of a micro-batch whose sequences have the greatest length: in training, or where only its
    log-probabilities are wanted, whichever is more."""
    longest = options["data.max_len"]
    trained = options["train.micro_batch_size"] * longest
    scored = options["rollout.micro_batch_size"] * longest
    layers, width = language.num_hidden_layers, language.hidden_size
    layer = 2 * (8 * width + 3 * language.intermediate_size)  # bytes a token, in bfloat16
    if options["actor.gradient_checkpointing_enable"]:
        kept = 2 * layers * width + 2 * layer  # the input of each layer, and one layer whole
    else:
        kept = layers * layer
    logits = language.vocab_size  # in bfloat16 and float32 and, in training, their gradients
    return max(trained * (kept + 12 * logits), scored * (layer + 6 * logits))
