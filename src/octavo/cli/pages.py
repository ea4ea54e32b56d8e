"""The pages of docs/ that are made from declarations: options, sampling parameters, ops, models.

`python -m octavo.cli.pages FOLDER` writes them (`python3 dev docs`); a test compares them with what lies in docs/. It
knows how the declarations are shaped, not what they say.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from octavo import ops
from octavo.cli.flags import to_markdown
from octavo.cli.models_page import models
from octavo.kernels import library
from octavo.ops.op import Op
from octavo.parameter import Parameter
from octavo.sampling_params import PARAMETERS

DECLARATION = "op"  # the module that says what an op is
PARAMETERS_HEAD = """\
# Sampling parameters

Made by `python3 dev docs` from src/octavo/sampling_params.py: the fields of `SamplingParams` and of the bodies of
`/v1/chat/completions` and `/v1/completions`. A value out of range is refused by name (status 400); `null` is the
default unless the range gives it a meaning. Over HTTP `logprobs` has OpenAI's meaning, a model's own defaults
(generation_config.json) replace those below, and a chat without `max_tokens` goes to the end of the context.

| parameter | default | range | meaning | native |
|---|---|---|---|---|"""
PARAMETERS_END = """
`native` is the column of the slot table that carries the parameter into the sampler (src/octavo/execution/layout.py);
one without a column acts in the front. The order in which they act is told in src/octavo/ops/sample.py; each filter is
defined by a function of src/octavo/kernels/reference/sample_filters.py.

## The order of samplers
Without `samplers` an answer has vLLM's order; the parameters that vLLM lacks take the places named in the table. With
`samplers` only those named act, one after the other on what the ones before left: penalties behind a filter change what
it left, and without `temperature` in the list logits are not divided. llama.cpp's own order is
`penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature`. At temperature 0 penalties and DRY act, nothing
else does; with `mirostat` penalties, DRY and temperature do. logit_bias, bad_words, allowed_token_ids and min_tokens
come before all of them. XTC draws a second number for a token; among equal logits the lower id is first everywhere.

Mirostat carries a number from token to token, which comes with the engine's outputs and goes back when an answer is
resumed; while it runs, `--spec-method` does not guess for that answer.

Presence and frequency penalties, min_tokens and DRY look at the answer alone; llama.cpp's look at the prompt too, so
that there a long quotation in the prompt cannot be repeated. The repetition penalty looks at both.

## Beam search
Over HTTP `use_beam_search: true` with `n` beams (at most 10) and `length_penalty` (1 by default, from -10 to 10), as in
vLLM; in Python `LLM.beam_search(prompts, BeamSearchParams(beam_width, max_tokens))`. A beam's score is the sum of its
log-probabilities divided by its length to the power of length_penalty, where the length is the answer's (as in
transformers; vLLM counts the prompt, too). The model's own log-probabilities count: no sampler has a part in it. It is
not streamed, and `stop` and `prompt_logprobs` are refused."""
OPS_HEAD = """\
# Ops

Made by `python3 dev docs` from src/octavo/ops and the entries of the native library. An anchor makes a phase and is
divided among threads; a row op joins the phase before or after it where its locality fits. A contract says how
results are rounded: within one numerics class an op that is bit-equal gives the bits of its reference, the others
stay within their bound. `octavo verify` checks it on a model, `octavo profile` measures each kind of phase."""
OPS_END = """
`format.*`: products with weights of a packed layout (native/formats). `tile.store`: keeps a value that a later phase
reads. `ceiling.*`: measure the machine."""


def parameters() -> str:
    """The page docs/parameters.md."""
    lines = [PARAMETERS_HEAD]
    for each in PARAMETERS:
        native = f"`{each.column}`" if each.column else ""
        lines.append(_cells(f"`{each.name}`", _default(each), each.kind.expects, each.meaning, native))
    lines.append(PARAMETERS_END)
    return "\n".join(lines) + "\n"


def _default(each: Parameter) -> str:
    """As JSON writes it; an empty list or map is `none`."""
    value = each.default
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, int | float):
        return f"{value:g}"
    return f"`{json.dumps(value)}`" if value else "none"


def operations() -> str:
    """The page docs/ops.md."""
    entries = set(library.new_machine(isa="auto", threads=1, scratch_bytes=4096).entries)
    lines = [OPS_HEAD]
    taken = set()
    for module, found in declared():
        name = module.__name__.rpartition(".")[2]
        lines += ["", f"## {name}", "", *(module.__doc__ or "").strip().split("\n\n")[0].split("\n"), ""]
        lines += ["| op | shapes | kind | locality | contract | bound | native |", "|---|---|---|---|---|---|---|"]
        for op in found:
            native = [entry for entry in (op.name, f"row.{op.name}", f"tile.{op.name}") if entry in entries]
            taken.update(native)
            shapes, where = _first(getattr(module, op.name)), ", ".join(f"`{entry}`" for entry in native)
            contract = (op.kind, op.locality.name.lower(), repr(op.contract), _first(op.bound))
            lines.append(_cells(f"`{op.name}`", shapes, *contract, where or f"inside `{_home(op)}`"))
    others = ", ".join(f"`{entry}`" for entry in sorted(entries - taken))
    lines += ["", "## Entries without an op", "", f"{others}.", OPS_END]
    return "\n".join(lines) + "\n"


def declared() -> Iterator[tuple[ModuleType, list[Op]]]:
    """The modules of octavo.ops with the ops that each declares, by name."""
    for info in sorted(pkgutil.iter_modules(ops.__path__), key=lambda info: info.name):
        if info.name != DECLARATION:
            module = importlib.import_module(f"{ops.__name__}.{info.name}")
            yield module, [each for each in vars(module).values() if isinstance(each, Op)]


def _home(op: Op) -> str:
    """The kernel whose arguments carry a row op that has no entry of its own."""
    from octavo.lowering.phases import IN_PROLOGUE

    if op.name not in IN_PROLOGUE:
        raise ValueError(f"{op!r} has no native entry")
    return "linear"


def _first(function: Callable[..., object]) -> str:
    """The first sentence or line of a docstring."""
    text = (function.__doc__ or "").strip().split("\n")[0]
    return text.split(". ")[0].rstrip(".")


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


PAGES = {"options.md": to_markdown, "parameters.md": parameters, "ops.md": operations, "models.md": models}


def write(folder: Path) -> None:
    """All pages into `folder`."""
    for name, make in PAGES.items():
        (folder / name).write_text(make(), encoding="utf-8")
        print(folder / name)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
