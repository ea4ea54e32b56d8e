"""The flat Step and the slot table: one list of fields for Python and for C++.

Both are plain memory. A field is an array whose first axes are named bounds; every field starts at a 64-byte boundary,
and the offsets follow from the bounds alone. `native/layout.h` is generated from this file (`python -m
octavo.execution.layout > native/layout.h`); both sides compare `LAYOUT_HASH` when the native library is loaded.

It knows names, types and sizes; it does not know what a kernel does with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.sampling_params import SAMPLER_CODES

ABI = 3
MAX_TOP_LOGPROBS = 20  # as in vLLM: --max-logprobs 20
MAX_STOP_IDS = 64  # eos ids and stop_token_ids of one request
MAX_LOGIT_BIAS = 1024  # entries of logit_bias of one request
MAX_BAD_WORD_IDS = 1024  # ids of all bad words of one request: length, ids, length, ids, ..., 0
MAX_RUN_AHEAD = 8  # decode steps that one native call may run
SAMPLER_STEPS = 12  # of a chain of samplers, its 0 included

_C_TYPES = {"i4": "int32_t", "i8": "int64_t", "u4": "uint32_t", "u8": "uint64_t", "f4": "float"}


@dataclass(frozen=True)
class Field:
    """An array in flat memory: numpy type code and axes, each a number or the name of a bound."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    meaning: str

    def shape(self, bounds: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(bounds[dim] if isinstance(dim, str) else dim for dim in self.dims)


# Header of a step: positions in the `header` field.
HEADER = (
    "magic", "abi", "hash", "epoch", "step",
    "rows",  # T: token rows of this step
    "seqs",  # S: sequences of this step
    "logit_rows",  # R: rows that need logits
    "loop",  # K: decode steps to run at most (1 unless every row is a decode row)
    "flags",
    "zero_pages", "copy_pages",  # entries in the lists of the same names
    "loops_done",  # out: decode steps that ran
    "left_because",  # out: 0 ran K, 1 a sequence finished, 2 arrival flag, 3 abort (nothing committed)
    "nonfinite",  # out: rows that had a non-finite logit
    "logit_first",  # set by native code: first logit row of the head chunk that runs
    "result_first",  # set by native code: result row of logit row 0 (loop index x S)
)  # fmt: skip

# Bounds: T token rows a step, S sequences, R result rows (max of T and S x run-ahead), G paged groups,
# Z page operations a step.
STEP_FIELDS = (
    Field("header", "i8", (64,), "see HEADER"),
    Field("row_slot", "i4", ("T",), "slot of each token row"),
    Field("row_pos", "i4", ("T",), "position of each token row in its sequence; its id is slot.ids[pos]"),
    Field("row_lo", "i4", ("G", "T"), "first visible key of each row, per group"),
    Field("row_hi", "i4", ("G", "T"), "one past the last visible key, per group"),
    Field("seq_slot", "i4", ("S",), "slot of each sequence of the step"),
    Field("seq_row", "i4", ("S1",), "first row of each sequence; rows of one sequence are adjacent and ascend"),
    Field("logit_row", "i4", ("R",), "token row whose hidden state the head reads"),
    Field("logit_seq", "i4", ("R",), "index into seq_slot"),
    Field("logit_target", "i4", ("R",), "-1: sample the next token; else a prompt id whose logprob is asked for"),
    Field("zero_page", "i4", ("Z",), "pages to zero before the step: they changed owner"),
    Field("copy_page", "i4", ("Z", 2), "pages to copy before the step: from, to"),
    Field("out_token", "i4", ("R",), "sampled id (or the target)"),
    Field("out_logprob", "f4", ("R",), "log-probability of out_token under the raw logits"),
    Field("out_rank", "i4", ("R",), "1 + number of ids before out_token in the total order"),
    Field(
        "out_status",
        "i4",
        ("R",),
        "0 ok, 1 non-finite logit, 2 no id is allowed, 3 ok but behind a draft not sampled, 4 the mask is late",
    ),  # fmt: skip
    Field("out_mu", "f4", ("R",), "mirostat's mu after this row; becomes slot.mu when out_token is committed"),
    Field("out_top_id", "i4", ("R", MAX_TOP_LOGPROBS), "most likely ids, descending"),
    Field("out_top_logprob", "f4", ("R", MAX_TOP_LOGPROBS), "their log-probabilities"),
)

# One row a slot: everything that native code knows about a sequence. Bounds: N slots, L ids, P pages of 16 tokens,
# V32 words of a vocabulary mask.
SLOT_FIELDS = (
    Field("ids", "i4", ("N", "L"), "prompt ids, then emitted ids, then the drafted ids of the step"),
    Field("page", "i4", ("N", "G", "P"), "page of each 16 positions, per group; -1: none"),
    Field("prompt_len", "i4", ("N",), "ids that the user sent"),
    Field("second", "i4", ("N",), "position at which the second text of a pair begins"),
    Field("known", "i4", ("N",), "ids that exist: prompt and emitted"),
    Field("length_limit", "i4", ("N",), "the sequence ends when known reaches this"),
    Field("min_known", "i4", ("N",), "stop ids are forbidden until known reaches this (min_tokens)"),
    Field("seed", "u8", ("N",), "key of Philox"),
    Field("choice", "i4", ("N",), "choice index, part of the Philox counter"),
    Field("stop_id", "i4", ("N", MAX_STOP_IDS), "ids that end the sequence"),
    Field("stop_ids", "i4", ("N",), "how many"),
    Field("temperature", "f4", ("N",), "0: greedy"),
    Field("top_k", "i4", ("N",), "0: off"),
    Field("top_p", "f4", ("N",), "1: off"),
    Field("min_p", "f4", ("N",), "0: off"),
    Field("repetition_penalty", "f4", ("N",), "1: off"),
    Field("presence_penalty", "f4", ("N",), "0: off"),
    Field("frequency_penalty", "f4", ("N",), "0: off"),
    Field("logprobs", "i4", ("N",), "-1: none, 0: of the chosen id, n: and of the n most likely"),
    Field("bias_id", "i4", ("N", MAX_LOGIT_BIAS), "logit_bias: ids"),
    Field("bias_value", "f4", ("N", MAX_LOGIT_BIAS), "logit_bias: values"),
    Field("biases", "i4", ("N",), "how many"),
    Field("bad_word", "i4", ("N", MAX_BAD_WORD_IDS), "length, ids, length, ids, ..., 0"),
    Field("mask", "u4", ("N", "V32"), "allowed ids: bit id % 32 of word id / 32"),
    Field("masked", "i4", ("N",), "1: mask applies; 2: it is late, nothing is sampled"),
    Field("grammar", "i4", ("N",), "not 0: mask comes from the table of masks, under this number (masks.h)"),
    Field("repeat_last_n", "i4", ("N",), "penalties look at this many of the last ids; -1: all"),
    Field("chain", "i4", ("N", SAMPLER_STEPS), "a chain of samplers (Sampler), ended by 0; empty: the usual ones"),
    Field("typical_p", "f4", ("N",), "1: off"),
    Field("top_n_sigma", "f4", ("N",), "0: off"),
    Field("xtc_probability", "f4", ("N",), "0: off"),
    Field("xtc_threshold", "f4", ("N",), "above 0.5: off"),
    Field("dynatemp_range", "f4", ("N",), "0: off"),
    Field("dynatemp_exponent", "f4", ("N",), "of the normalised entropy"),
    Field("mirostat_tau", "f4", ("N",), "surprise to aim at, in bits"),
    Field("mirostat_eta", "f4", ("N",), "rate at which mu follows"),
    Field("mu", "f4", ("N",), "mirostat's state"),
    Field("dry_multiplier", "f4", ("N",), "0: off"),
    Field("dry_base", "f4", ("N",), "of the power of the length"),
    Field("dry_allowed_length", "i4", ("N",), "repetitions that are shorter cost nothing"),
    Field("dry_penalty_last_n", "i4", ("N",), "look at this many of the last ids of the output; -1: all"),
    Field("breaker", "u4", ("N", "V32"), "ids that end a repetition, in bits like mask's; read if dry_multiplier is"),
)


def _describe() -> str:
    lines = [f"abi {ABI}", "header " + " ".join(HEADER), "samplers " + " ".join(SAMPLER_CODES)]
    for title, fields in (("step", STEP_FIELDS), ("slot", SLOT_FIELDS)):
        lines += [f"{title} {f.name} {f.dtype} {f.dims}" for f in fields]
    return "\n".join(lines)


LAYOUT_HASH = int.from_bytes(hashlib.sha256(_describe().encode()).digest()[:7], "little")
MAGIC = 0x4F435441564F  # "OCTAVO"


@dataclass(frozen=True)
class FlatLayout:
    """Offsets in bytes of every field for given bounds."""

    fields: tuple[Field, ...]
    bounds: Mapping[str, int]
    offsets: tuple[int, ...]
    nbytes: int

    def views(self, memory: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Numpy views of every field over `memory` ([nbytes] uint8, 64-byte aligned)."""
        views = {}
        for field, offset in zip(self.fields, self.offsets, strict=True):
            shape = field.shape(self.bounds)
            nbytes = int(np.prod(shape)) * int(field.dtype[1:])
            views[field.name] = memory[offset : offset + nbytes].view("<" + field.dtype).reshape(shape)
        return views


def flat_layout(fields: tuple[Field, ...], bounds: Mapping[str, int]) -> FlatLayout:
    """Lay `fields` out one after the other, each at a multiple of 64 bytes."""
    offsets = []
    end = 0
    for field in fields:
        offsets.append(end)
        nbytes = int(np.prod(field.shape(bounds), dtype=np.int64)) * int(field.dtype[1:])
        end = (end + nbytes + 63) // 64 * 64
    return FlatLayout(fields, dict(bounds), tuple(offsets), end)


def step_layout(*, rows: int, seqs: int, groups: int, page_ops: int) -> FlatLayout:
    """The flat Step for at most `rows` token rows, `seqs` sequences, `groups` paged groups."""
    results = max(rows, seqs * MAX_RUN_AHEAD)
    bounds = {"T": rows, "S": seqs, "S1": seqs + 1, "R": results, "G": groups, "Z": page_ops}
    return flat_layout(STEP_FIELDS, bounds)


def slot_layout(*, slots: int, ids: int, groups: int, pages: int, vocab: int) -> FlatLayout:
    """The slot table for `slots` sequences of at most `ids` ids on `pages` pages of 16 tokens."""
    bounds = {"N": slots, "L": ids, "G": groups, "P": pages, "V32": (vocab + 31) // 32}
    return flat_layout(SLOT_FIELDS, bounds)


def _header_file() -> str:
    """The C++ side: an index for each header word and field; the dtype stands in a typed accessor."""
    out = [
        "// Generated by `python -m octavo.execution.layout`; do not edit. See src/octavo/execution/layout.py.",
        "#pragma once", "#include <cstddef>", "#include <cstdint>", "namespace octavo {",
        f"constexpr int64_t kMagic = {MAGIC};", f"constexpr int64_t kAbi = {ABI};",
        f"constexpr int64_t kLayoutHash = {LAYOUT_HASH};",
        f"constexpr int kMaxTopLogprobs = {MAX_TOP_LOGPROBS};", f"constexpr int kMaxStopIds = {MAX_STOP_IDS};",
        f"constexpr int kMaxLogitBias = {MAX_LOGIT_BIAS};", f"constexpr int kMaxBadWordIds = {MAX_BAD_WORD_IDS};",
        f"constexpr int kMaxRunAhead = {MAX_RUN_AHEAD};",
        "enum Header : int {",
        *(f"  H_{name} = {i}," for i, name in enumerate(HEADER)),
        "};",
        f"constexpr int kSamplerSteps = {SAMPLER_STEPS};",
        "enum Sampler : int32_t {",
        *(f"  S_{name} = {code}," for name, code in SAMPLER_CODES.items()),
        "};",
    ]  # fmt: skip
    for struct, fields in (("Step", STEP_FIELDS), ("Slots", SLOT_FIELDS)):
        out += [
            f"// Typed pointers into the flat memory of {struct.lower()}; bounds are members of the same name.",
            f"struct {struct} {{",
        ]
        names = sorted({d for f in fields for d in f.dims if isinstance(d, str)})
        out.append("  int64_t " + ", ".join(names) + ";  // bounds")
        for f in fields:
            dims = "".join(f"[{d}]" for d in f.dims)
            out.append(f"  {_C_TYPES[f.dtype]}* {f.name};  // {dims} {f.meaning}")
        out += [
            f"  static constexpr int kFields = {len(fields)};",
            "  void bind(uint8_t* base, const int64_t* offsets) {",
        ]
        out += [
            f"    {f.name} = reinterpret_cast<{_C_TYPES[f.dtype]}*>(base + offsets[{i}]);" for i, f in enumerate(fields)
        ]
        out += ["  }", "};"]
    out += ["}  // namespace octavo", ""]
    return "\n".join(out)


if __name__ == "__main__":
    print(_header_file(), end="")
