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
from valor_plugin.llava_med.parts import PARTS, part_of
from valor_plugin.recipe import Lora, Sft

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
    def advice(self) -> str:
        """What needs less."""
        return (
            "Lower openrlhf.vllm.gpu_memory_utilization, train.micro_batch_size or "
            "rollout.micro_batch_size"
        )

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


@dataclass(frozen=True)
class SupervisedMemory:
    """Bytes on one GPU of supervised fine-tuning.

    Attributes:
        weights: those of the model.
        gradients: of what trains.
        optimizer: its states.
        activations: those of one micro-batch.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def advice(self) -> str:
        """What needs less."""
        return "Lower sft.micro_batch_size, raise sft.zero_stage, or train adapters (lora)"

    @property
    def card(self) -> float:
        """The memory of the smallest card that will do."""
        return sum(vars(self).values()) + _RESERVE

    def of(self, total: float) -> float:
        """How much of a card must be free, however large it is."""
        return self.card

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {size / GB:.1f}" for name, size in vars(self).items())
        return f"about {self.card / GB:.0f} GB a card: {listed} GB"


def estimate_supervised(
    sft: Sft,
    trainable: Collection[str],
    adapters: Lora,
    shapes: Mapping[str, tuple[int, ...]],
    language: Any,
    longest: int,
) -> SupervisedMemory:
    """The memory that supervised fine-tuning needs: 16 bytes for each parameter that trains, of
    which ZeRO divides what it divides, and 2 for each other. TRL never has the logits whole.

    Args:
        sft: how it trains, with the number of devices and the micro-batch.
        trainable: parts of the model that train.
        adapters: sizes of LoRA's matrices, used where "lora" is among `trainable`.
        shapes: name -> shape of every tensor of the model.
        language: transformers' configuration of the language model.
        longest: number of tokens of the longest study.
    """
    sizes = _sizes(shapes, adapters)
    trained = sum(sizes[part] for part in trainable)
    frozen = sum(sizes[part] for part in PARTS if part not in trainable)
    devices = sft.devices or 1
    by_states, by_weights = (devices if sft.zero_stage >= needed else 1 for needed in (2, 3))
    kept = 4 if sft.zero_stage == 0 else 2  # bytes: DeepSpeed's float32 weights are the optimizer's
    tokens = (sft.micro_batch_size or sft.batch_size) * longest
    return SupervisedMemory(
        weights=(kept * trained + 2 * frozen) / by_weights,
        gradients=kept * trained / by_states,
        optimizer=(16 - 2 * kept) * trained / by_states,
        activations=tokens * _kept(language, bool(sft.gradient_checkpointing)),
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
    sizes = _sizes(shapes, adapters)
    whole = 2 * sum(sizes[part] for part in PARTS)
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


def _sizes(shapes: Mapping[str, tuple[int, ...]], adapters: Lora) -> Counter[str]:
    """Part -> number of its parameters; that of adapters too, whether there are any or not."""
    sizes: Counter[str] = Counter()
    for name, shape in shapes.items():
        sizes[part_of(name)] += prod(shape)
    sizes["lora"] = lora.count_parameters(shapes, adapters.rank)
    return sizes


def _activations(options: Mapping[str, Any], language: Any) -> float:
    """Of a micro-batch whose sequences have the greatest length: in training, or where only its
    log-probabilities are wanted, whichever is more."""
    longest = options["data.max_len"]
    trained = options["train.micro_batch_size"] * longest
    scored = options["rollout.micro_batch_size"] * longest
    kept = _kept(language, options["actor.gradient_checkpointing_enable"])
    logits = language.vocab_size  # in bfloat16 and float32 and, in training, their gradients
    return max(trained * (kept + 12 * logits), scored * (_layer(language) + 6 * logits))


def _layer(language: Any) -> float:
    """Bytes of activations of one layer for a token, in bfloat16."""
    return 2 * (8 * language.hidden_size + 3 * language.intermediate_size)


def _kept(language: Any, checkpointing: bool) -> float:
    """Bytes of activations that are kept for a token until its gradients are computed."""
    layers, width = language.num_hidden_layers, language.hidden_size
    if checkpointing:
        return 2 * layers * width + 2 * _layer(language)  # the input of each layer, and one whole
    return layers * _layer(language)
