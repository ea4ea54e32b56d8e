"""Byte-level BPE by ranks: tiktoken files (`*.tiktoken`, Llama 3's tokenizer.model) and Mistral's tekken.json.

A tiktoken file lists base64 of a token's bytes and its rank, and nothing else; its number of ranks tells the family,
whose split pattern and special tokens stand here. A tekken.json brings both along.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.tokenizer import vocabulary
from octavo.tokenizer.byte_table import spell
from octavo.tokenizer.pre_tokenizers import GPT4O, KIMI, LLAMA3, QWEN2, BytePre, Step
from octavo.tokenizer.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, Pieces, VocabularyFault, VocabularyFile

_MOST_SPECIAL = 1 << 16  # ids that a file may add to its ranks; the largest family has 2,048
_LINE = re.compile(rb"[A-Za-z0-9+/=]+ [0-9]+\r?\n?")


@dataclass(frozen=True)
class Family:
    """special: tokens behind the ranks, in order. names: bos_token and so on."""

    name: str
    pre: BytePre
    special: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    add_bos: bool = False


def _reserved(form: str, first: int, last: int) -> tuple[str, ...]:
    return tuple(form.format(number) for number in range(first, last + 1))


_LLAMA3 = (
    ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
    + ("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>")
    + ("<|eot_id|>", "<|python_tag|>", "<|image|>")
    + _reserved("<|reserved_special_token_{}|>", 2, 245)
)
_VISION = "<|vision_reserved_special_token_{}|>"
_LLAMA4 = (
    ("<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
    + ("<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>")
    + _reserved("<|text_post_train_reserved_special_token_{}|>", 0, 5)
    + ("<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>")
    + _reserved("<|text_post_train_reserved_special_token_{}|>", 8, 68)
    + ("<|image_start|>", "<|image_end|>", *_reserved(_VISION, 0, 1), "<|tile_x_separator|>", "<|tile_y_separator|>")
    + (*_reserved(_VISION, 2, 5), "<|image|>", *_reserved(_VISION, 6, 6), "<|patch|>", *_reserved(_VISION, 7, 1047))
    + _reserved("<|reasoning_reserved_special_token_{}|>", 0, 7)
    + ("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>")
    + _reserved("<|reserved_special_token_{}|>", 0, 903)
)
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *_reserved("<|extra_{}|>", 0, 204))
_LLAMA_NAMES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
_FIM = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
_END = {"eos_token": "<|endoftext|>"}

# By the number of ranks.
FAMILIES: Mapping[int, Family] = {
    128_000: Family("Llama 3", BytePre((LLAMA3,), whole_words=True), _LLAMA3, _LLAMA_NAMES, add_bos=True),
    200_000: Family("Llama 4", BytePre((GPT4O,), whole_words=True), _LLAMA4, _LLAMA_NAMES, add_bos=True),
    151_643: Family("Qwen", BytePre((QWEN2,), nfc=True, whole_words=True), _QWEN, _END),
    163_584: Family("Kimi K2", BytePre((KIMI,), whole_words=True), (), {"bos_token": "[BOS]", "eos_token": "[EOS]"}),
    50_256: Family("GPT-2", BytePre((Step.GPT2,), whole_words=True), ("<|endoftext|>",), _END),
    100_256: Family("GPT-4", BytePre((LLAMA3,), whole_words=True), ("", *_FIM), _END),
    199_998: Family("GPT-4o", BytePre((GPT4O,), whole_words=True), ("", "<|endoftext|>"), _END),
}
TEKKEN_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_TEKKEN_SPECIAL = (  # of files without a list of their own
    ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]")
    + ("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]")
    + ("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")
)


def is_tiktoken(content: bytes) -> bool:
    """Whether a file begins with a line of base64 and a rank."""
    return _LINE.match(content[:1024]) is not None


def open_tiktoken(path: Path, content: bytes, listed: Mapping[int, str]) -> VocabularyFile:
    """A file of ranks. listed: special tokens by id that the folder's configuration names; they stand over the
    family's. Raises CheckpointError, UnsupportedModel."""
    count = sum(1 for line in content.splitlines() if line.strip())
    family = FAMILIES.get(count)
    if family is None:
        known = ", ".join(f"{ranks} ({known.name})" for ranks, known in FAMILIES.items())
        raise UnsupportedModel(
            f"{path} has {count} ranks, of no family whose split pattern is known: {known}. Use a folder with "
            "tokenizer.json instead.",
            param="tokenizer.model",
        )
    special = {count + at: token for at, token in enumerate(family.special) if token} | dict(listed)
    present = set(special.values())
    names = {name: token for name, token in family.names.items() if token in present}
    return VocabularyFile(
        path, lambda: _build(path, _ranks(path, content), 0, special, family.pre), names, family.add_bos and bool(names)
    )


def open_tekken(path: Path, content: bytes) -> VocabularyFile:
    """Mistral's tekken.json."""
    return VocabularyFile(path, lambda: _build_tekken(path, content), TEKKEN_NAMES, add_bos=True)


def _build(
    path: Path,
    ranks: Sequence[bytes],
    offset: int,
    special: Mapping[int, str],
    pre: BytePre,
    plain: frozenset[int] = frozenset(),
) -> tokenizers.Tokenizer:
    """offset: the id of rank 0. special: id -> token, of which `plain` are shown. Other ids have no token."""
    spelled = [spell(token) for token in ranks]
    limit = len(spelled) + offset + _MOST_SPECIAL
    taken = {
        id_: token for id_, token in special.items() if 0 <= id_ < limit and not offset <= id_ < offset + len(spelled)
    }
    size = max((*taken, len(spelled) - 1 + offset)) + 1
    tokens = [taken.get(id_, "") for id_ in range(size)]
    tokens[offset : offset + len(spelled)] = spelled
    types = [USER_DEFINED if id_ in plain else CONTROL if id_ in taken else UNUSED for id_ in range(size)]
    types[offset : offset + len(spelled)] = [NORMAL] * len(spelled)
    try:
        return vocabulary.byte_level(Pieces(tokens, types), vocabulary.merges_from_ranks(spelled), pre)
    except VocabularyFault as fault:
        raise CheckpointError(f"{path}: its {fault.part} {fault.message}", path=str(path)) from fault


def _ranks(path: Path, content: bytes) -> list[bytes]:
    """The tokens' bytes by rank."""
    found: dict[int, bytes] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            found[int(rank)] = base64.b64decode(token, validate=True)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(f"{path}: line {number} is not base64 and a rank.", path=str(path)) from error
    return _in_order(path, found)


def _in_order(path: Path, found: Mapping[int, bytes]) -> list[bytes]:
    if found.keys() != set(range(len(found))):
        raise CheckpointError(f"{path}: its ranks are not 0 to {len(found) - 1}.", path=str(path))
    tokens = [found[rank] for rank in range(len(found))]
    if len(set(tokens)) != len(tokens) or not all(bytes([byte]) in found.values() for byte in b"a\x00\xff"):
        raise CheckpointError(f"{path}: it has a token twice, or lacks a byte.", path=str(path))
    return tokens


def _build_tekken(path: Path, content: bytes) -> tokenizers.Tokenizer:
    try:
        whole = json.loads(content)
        config = whole["config"]
        count, size = int(config["default_num_special_tokens"]), int(config["default_vocab_size"])
        entries = whole["vocab"][: size - count]
        found = {int(entry["rank"]): base64.b64decode(entry["token_bytes"], validate=True) for entry in entries}
        listed = whole.get("special_tokens") or [
            {"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(_TEKKEN_SPECIAL)
        ]
        stated = {int(entry["rank"]): str(entry["token_str"]) for entry in listed}
        plain = frozenset(int(entry["rank"]) for entry in listed if not entry.get("is_control", True))
        pre = BytePre((str(config["pattern"]),), whole_words=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no tekken.json: {type(error).__name__} {error}", path=str(path)) from error
    if not 0 <= count <= _MOST_SPECIAL:
        raise CheckpointError(f"{path}: default_num_special_tokens is {count}.", path=str(path))
    special = {rank: stated.get(rank, f"<SPECIAL_{rank}>") for rank in range(count)}
    return _build(path, _in_order(path, found), count, special, pre, plain)
