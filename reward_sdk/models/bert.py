"""A frozen BERT encoder for texts of different lengths, without the cost of padding.

CheXbert and RadGraph both read reports with a BERT of 110 million parameters; a report has some 60
tokens and the longest over 300, so that padding can double the work. Here all tokens of a batch
stand below each other in one matrix for the linear layers, which are nearly all of the arithmetic;
only attention sees texts side by side, sorted by length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

_EPS = 1e-12  # BERT's, of every layer normalisation
# ours: tokens per pass, padding included; bounds the memory. BERT-base takes 52 kB a token in
# float32 and 28 kB in bfloat16: .2 GB on a CPU. A GPU waits for a pass's 300 launches unless it is
# large: 1.7 or .9 GB.
_CHUNK_TOKENS, _CHUNK_TOKENS_CUDA = 4096, 32_768


class Bert:
    """BERT's encoder, for inference alone.

    Args:
        tensors: parameters under the names of transformers' BertModel ("embeddings...",
            "encoder.layer.0..."); others are not looked at.
        heads: number of attention heads.
        device: a torch device.
        dtype: type of the matrix products; float32 gives transformers' values up to rounding.

    Raises:
        KeyError: a parameter is missing from `tensors`.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], heads: int, device: str, dtype: torch.dtype
    ) -> None:
        def get(name: str, to: torch.dtype = dtype) -> Tensor:
            return tensors[name].detach().to(device, to).contiguous()

        def pair(name: str, to: torch.dtype = dtype) -> tuple[Tensor, Tensor]:
            return get(f"{name}.weight", to), get(f"{name}.bias", to)

        self.heads, self.device = heads, device
        self.words = get("embeddings.word_embeddings.weight", torch.float32)
        kinds = get("embeddings.token_type_embeddings.weight", torch.float32)
        self.places = get("embeddings.position_embeddings.weight", torch.float32) + kinds[0]
        self.norm = pair("embeddings.LayerNorm", torch.float32)
        self.layers = []
        while f"encoder.layer.{len(self.layers)}.output.dense.weight" in tensors:
            at = f"encoder.layer.{len(self.layers)}"
            qkv = [pair(f"{at}.attention.self.{part}") for part in ("query", "key", "value")]
            self.layers.append(
                (
                    [torch.cat(parts) for parts in zip(*qkv, strict=True)],
                    pair(f"{at}.attention.output.dense"),
                    pair(f"{at}.attention.output.LayerNorm", torch.float32),
                    pair(f"{at}.intermediate.dense"),
                    pair(f"{at}.output.dense"),
                    pair(f"{at}.output.LayerNorm", torch.float32),
                )
            )

    @property
    def max_tokens(self) -> int:
        """The longest text, in tokens."""
        return len(self.places)

    @property
    def width(self) -> int:
        """Hidden size."""
        return self.places.shape[1]

    def __call__(self, texts: Sequence[Sequence[int]], first_only: bool = False) -> list[Tensor]:
        """The last layer's output for every text.

        Args:
            texts: token ids, each of 1 to `max_tokens`.
            first_only: of each text's tokens only the first is wanted ([CLS]).

        Returns:
            float32 on the device, (tokens of the text, hidden) or (1, hidden), in the texts' order.
        """
        results: list[Tensor] = [torch.empty(0)] * len(texts)
        on_gpu = torch.device(self.device).type == "cuda"
        most = _CHUNK_TOKENS_CUDA if on_gpu else _CHUNK_TOKENS
        with torch.inference_mode():
            # What passes need of the host is copied first: a copy waits for all passes before it.
            passes = [
                (chunk, self._laid_out([texts[i] for i in chunk])) for chunk in _chunks(texts, most)
            ]
            for chunk, layout in passes:
                outputs = self._encode(*layout, first_only)
                for i, output in zip(chunk, outputs, strict=True):
                    results[i] = output
        return results

    def _laid_out(self, texts: Sequence[Sequence[int]]) -> tuple[list[int], Tensor, Tensor]:
        """Lengths of texts, which of the cells of (B, L) they fill, and of all their tokens ids,
        places in the text and cells, (3, T)."""
        lengths = [len(text) for text in texts]
        columns = torch.arange(max(lengths))
        inside = columns < torch.tensor(lengths)[:, None]
        ids = torch.tensor([token for text in texts for token in text])
        tokens = torch.stack(
            [ids, columns.expand_as(inside)[inside], inside.flatten().nonzero().squeeze(1)]
        )
        return lengths, inside.to(self.device), tokens.to(self.device)

    def _encode(
        self, lengths: Sequence[int], inside: Tensor, tokens: Tensor, first_only: bool
    ) -> Sequence[Tensor]:
        ids, place, cells = tokens
        counts = inside.sum(1)
        first = counts.cumsum(0) - counts

        hidden = self._normed(self.words[ids] + self.places[place], *self.norm)
        # The queries, keys and values of all texts side by side; what pads them stays zero.
        shape = (*inside.shape, 3, self.heads, self.width // self.heads)
        grid = self.layers[0][0][0].new_zeros(inside.numel(), 3 * self.width)
        ragged = min(lengths) < max(lengths)
        added = grid.new_zeros(inside.shape).masked_fill(~inside, float("-inf"))[:, None, None]
        for number, (qkv, project, norm_1, widen, narrow, norm_2) in enumerate(self.layers):
            last = first_only and number == len(self.layers) - 1
            grid[cells] = linear(hidden.to(grid.dtype), *qkv)
            # each (B, heads, L, width / heads)
            query, key, value = grid.view(shape).permute(2, 0, 3, 1, 4)
            if last:
                query, hidden = query[:, :, :1], hidden[first]
            mixed = scaled_dot_product_attention(
                query, key, value, attn_mask=added if ragged else None
            )
            mixed = mixed.transpose(1, 2).reshape(-1, self.width)
            if ragged and not last:
                mixed = mixed[cells]
            hidden = self._normed(hidden + linear(mixed, *project), *norm_1)
            wide = gelu(linear(hidden.to(grid.dtype), *widen))
            hidden = self._normed(hidden + linear(wide, *narrow), *norm_2)
        return hidden.split(1 if first_only else lengths)

    def _normed(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return layer_norm(hidden, (self.width,), weight, bias, _EPS)


def _chunks(texts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Indices of texts, shortest first, in chunks of at most so many tokens with padding, or of one
    text."""
    chunk: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        if chunk and (len(chunk) + 1) * len(texts[i]) > most:
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk
