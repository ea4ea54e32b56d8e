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
    """Rows [first, first + the weight's own) of a layer that holds `rows` in all."""

    layer: str
    first: int
    rows: int


@dataclass(frozen=True)
class WeightNames:
    """`layer` below is the last part of a weight's path, such as q_proj.

    gguf: own path -> path in GGUF. paired: layer -> heads whose rows GGUF files hold in pairs (x[2i], x[2i + 1])
    instead of halves. fused: layer -> its place in a larger tensor, in both kinds of files. norm_offset: added to the
    weights of norms of Hugging Face's files (GGUF files hold the sum).

    root: how own names of the model without its head begin; files may have another root there, or none, which the
    tensor that ends with `anchor` tells (file_root, see `rooted`). unused: pattern of tensors that files carry and
    this model does not read.
    """

    gguf: Mapping[str, str] = field(default_factory=lambda: GGUF)
    paired: Mapping[str, int] = field(default_factory=dict)
    fused: Mapping[str, Part] = field(default_factory=dict)
    norm_offset: float = 0.0
    root: str = "model."
    anchor: str = "embed_tokens.weight"
    file_root: str | None = None
    unused: str = ""

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
            stem = f"{stem.rpartition('.')[0]}.{part.layer}"
        if kind != "gguf":
            if self.file_root is not None and stem.startswith(self.root):
                stem = self.file_root + stem.removeprefix(self.root)
            return f"{stem}.{last}"
        number = BLOCK.search(stem)
        found = self.gguf.get(BLOCK.sub("{i}", stem, count=1))
        return None if found is None else f"{found.format(i=number[0] if number else '')}.{last}"


def _layer(name: str) -> str:
    return name.split(".")[-2] if "." in name else name
