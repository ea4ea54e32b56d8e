"""How files call and store a model's weights, where that is not as the model has them: data, for binding.

A model's own names are those of Hugging Face. It knows no file and reads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

BLOCK = re.compile(r"(?<=\.)\d+(?=\.)")  # the number of a block inside a name
NOTHING: Mapping[str, object] = MappingProxyType({})

# own name -> GGUF name, as nearly all decoders have them; {i}: the number of a block
GGUF = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
    "model.layers.{i}.self_attn.q_proj": "blk.{i}.attn_q",
    "model.layers.{i}.self_attn.k_proj": "blk.{i}.attn_k",
    "model.layers.{i}.self_attn.v_proj": "blk.{i}.attn_v",
    "model.layers.{i}.self_attn.q_norm": "blk.{i}.attn_q_norm",
    "model.layers.{i}.self_attn.k_norm": "blk.{i}.attn_k_norm",
    "model.layers.{i}.self_attn.o_proj": "blk.{i}.attn_output",
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
    "model.layers.{i}.mlp.gate_proj": "blk.{i}.ffn_gate",
    "model.layers.{i}.mlp.up_proj": "blk.{i}.ffn_up",
    "model.layers.{i}.mlp.down_proj": "blk.{i}.ffn_down",
}


@dataclass(frozen=True)
class Part:
    """Rows [first, first + the weight's own) of a layer that holds `rows` in all, or those of `ids`."""

    layer: str
    first: int
    rows: int
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Experts:
    """A way in which a kind of file holds a weight of all experts, or biases: patterns, in which {i} is the number of a
    block and {e} that of an expert.

    name: a tensor of all, or with {e} one of each. every: (first, step), which rows of it (elements of a bias); halves:
    step runs of rows, of which that number is the weight's.
    transposed: rows are columns there. scales: the tensor of the exponents of MXFP4, whose nibbles are in `name`.
    """

    kind: str  # gguf, safetensors
    name: str
    every: tuple[int, int] = (0, 1)
    transposed: bool = False
    scales: str | None = None
    halves: bool = False
    count: int = 0  # of experts; set with the block

    def of_block(self, number: str, count: int) -> Experts:
        scales = None if self.scales is None else self.scales.replace("{i}", number)
        return replace(self, name=self.name.replace("{i}", number), scales=scales, count=count)

    @property
    def matrices(self) -> tuple[str, ...]:
        """The tensor of all experts, or those of each."""
        each = "{e}" in self.name
        return tuple(self.name.replace("{e}", str(e)) for e in range(self.count)) if each else (self.name,)

    @property
    def tensors(self) -> tuple[str, ...]:
        """All that is read."""
        return self.matrices if self.scales is None else (*self.matrices, self.scales)

    def stored_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Of `tensors`, for a weight [experts, n, k] or a bias [experts, n]."""
        experts, n, *k = shape
        rows = n * self.every[1]
        if self.scales is not None:
            return [(experts, rows, k[0] // 32, 16), (experts, rows, k[0] // 32)]
        one = (*k, rows) if self.transposed else (rows, *k)
        each = "{e}" in self.name
        return [one] * self.count if each else [(experts, *one)]


def also_in_gguf(ways: Mapping[str, tuple[Experts, ...]]) -> dict[str, tuple[Experts, ...]]:
    """The ways of folders by layer, and with them those of GGUF: a tensor of all experts, in 2023 one of each."""
    found = {}
    for layer, some in ways.items():
        projection, kind = layer.split(".")
        stem = f"blk.{{i}}.ffn_{projection.removesuffix('_proj')}"
        found[layer] = (*some, Experts("gguf", f"{stem}_exps.{kind}"), Experts("gguf", f"{stem}.{{e}}.{kind}"))
    return found


@dataclass(frozen=True)
class WeightNames:
    """`layer` below is the last part of a weight's path, such as q_proj.

    gguf: own path -> path in GGUF. paired: layer -> heads whose rows GGUF files hold in pairs (x[2i], x[2i + 1])
    instead of halves. fused: layer -> its place in a larger tensor, in both kinds of files. norm_offset: added to the
    weights of norms of Hugging Face's files (GGUF files hold the sum).

    root: how own names of the model without its head begin; files may have another root there, or none, which the
    tensor that ends with `anchor` tells (file_root, see `rooted`). unused: pattern of tensors that files carry and
    this model does not read.

    experts: last parts of the path of a weight of all experts, such as gate_proj.weight -> ways in which files hold it.
    """

    gguf: Mapping[str, str] = field(default_factory=lambda: GGUF)
    paired: Mapping[str, int] = field(default_factory=dict)
    fused: Mapping[str, Part] = field(default_factory=dict)
    norm_offset: float = 0.0
    root: str = "model."
    anchor: str = "embed_tokens.weight"
    file_root: str | None = None
    unused: str = ""
    experts: Mapping[str, tuple[Experts, ...]] = field(default_factory=dict)

    def experts_of(self, name: str, kind: str, count: int) -> list[Experts]:
        """The ways of a kind of file for a weight of `count` experts; [] for any other weight."""
        head, marker, layer = name.partition(".experts.")
        number = BLOCK.search(head + ".")
        if not marker or number is None:
            return []
        return [way.of_block(number[0], count) for way in self.experts[layer] if way.kind == kind]

    def rooted(self, tensors: Iterable[str]) -> WeightNames:
        """These names for a folder with these tensors."""
        found = next((name for name in tensors if name.endswith(self.anchor)), None)
        return self if found is None else replace(self, file_root=found.removesuffix(self.anchor))

    def part_of(self, name: str) -> Part | None:
        """The place of a weight in a larger tensor; None for one that has its own."""
        return self.fused.get(_layer(name))

    def heads_in_pairs(self, name: str) -> int:
        """Heads whose rows a GGUF file holds in pairs; 0 where the order is ours."""
        return self.paired.get(_layer(name), 0)

    def stored(self, name: str, kind: str) -> str | None:
        """The tensor of a file of this kind (gguf, safetensors) that holds a weight; None where none can."""
        stem, _, last = name.rpartition(".")
        part = self.fused.get(_layer(name))
        if part is not None:
            stem = f"{stem.rpartition('.')[0]}.{part.layer}".lstrip(".")
        if kind != "gguf":
            if self.file_root is not None and stem.startswith(self.root):
                stem = self.file_root + stem.removeprefix(self.root)
            return f"{stem}.{last}"
        number = BLOCK.search(stem)
        found = self.gguf.get(BLOCK.sub("{i}", stem, count=1))
        if found is None:  # a weight that is called nothing below its layer, such as sinks
            found, last = self.gguf.get(BLOCK.sub("{i}", name, count=1)), "weight"
        return None if found is None else f"{found.format(i=number[0] if number else '')}.{last}"


def _layer(name: str) -> str:
    return name.split(".")[-2] if "." in name else name
