"""The page docs/models.md: which families and formats are built, and on what weights each was run.

Made from the registry, the table of formats, the catalogue and docs/models.json, which `pytest --record-models` writes
of what its passed tests opened. It knows nothing of a family or format beyond those tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from octavo.checkpoints.catalogue import CATALOGUE
from octavo.checkpoints.families import FAMILIES
from octavo.quantization.format import FORMATS, GGML_TYPES, format_named

RECORD = Path(__file__).parents[3] / "docs" / "models.json"
# what a suite shows -> the folders of tests that do
SUITES = {
    "logits": ("tests/models/",),
    "native": ("tests/execution/", *(f"tests/models/test_{name}.py" for name in ("families", "moe", "encoders"))),
    "invariance": ("tests/engine/",),
    "served": ("tests/server/", "tests/test_llm.py", "tests/cli/"),
}
HEAD = """\
# Models and formats

Made by `python3 dev docs` from src/octavo/checkpoints/families.py, src/octavo/quantization/format.py, the catalogue
and docs/models.json: what the passed tests of a run opened (`pytest -n0 --record-models tests`). A cell tells the
weights: **real** ones of a published model, or *random* ones in a small model of the family's own configuration.

- logits: equal to transformers in float32 within 1e-3 (tests/models).
- native: the kernels against their reference, phase by phase, and `octavo verify` (tests/execution, and
  those of families in tests/models).
- invariance: the same tokens alone, batched, chunked, preempted, from the cache (tests/engine).
- served: over HTTP, in Python and on the command line (tests/server, tests/test_llm.py, tests/cli)."""
NAMES_HEAD = """
## Short names
`octavo serve NAME`; the repositories are those of the models' authors. Which of them can be reached was not tried
where this page is made; gated ones need a token (`HF_TOKEN`)."""
FORMATS_HEAD = """
## Formats
Bits a weight in the file; kernels read the packed layout (native/formats)."""
Models = list[dict[str, str]]


def models() -> str:
    """The page. Without a record every cell is empty."""
    record: Models = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else []
    lines = [HEAD, "", "## Families", *_table(["family", "written in", *SUITES, "formats run"], _families(record))]
    lines += [FORMATS_HEAD, *_table(["format", "bits", "packed as", *SUITES], _formats(record))]
    missing = ", ".join(sorted(name.upper() for name in GGML_TYPES.values() if name not in FORMATS))
    lines += ["", f"Of GGML's types these are not built: {missing}.", NAMES_HEAD]
    named = [[f"`{each.name}`", each.family, each.hub or each.file] for each in CATALOGUE.values()]
    lines += _table(["name", "family", "from"], [row for row in named if row[1] in FAMILIES])
    return "\n".join(lines) + "\n"


def _families(record: Models) -> Iterable[list[str]]:
    for family, place in FAMILIES.items():
        own = [each for each in record if each["family"] == family]
        file = place.partition(":")[0].rpartition(".")[2]
        yield [f"`{family}`", f"models/{file}.py", *_cells(own), _run_formats(own)]


def _formats(record: Models) -> Iterable[list[str]]:
    for name in FORMATS:
        fmt = format_named(name)
        own = [each for each in record if name in each["formats"].split()]
        yield [name.upper(), f"{8 * fmt.block_bytes / fmt.block:.4g}", f"`{fmt.layout}`", *_cells(own)]


def _cells(own: Models) -> list[str]:
    """For each suite the real models by name, and whether random ones were run."""
    return [_weights([each for each in own if each["suite"].startswith(places)]) for places in SUITES.values()]


def _weights(own: Models) -> str:
    real = sorted({each["model"] for each in own if each["weights"] == "real"})
    words = [f"**real** ({', '.join(real)})"] if real else []
    if any(each["weights"] == "random" for each in own):
        words.append("*random*")
    return ", ".join(words) or "–"


def _run_formats(own: Models) -> str:
    """All formats that the family was run in: those of real weights in bold."""
    real = {name for each in own if each["weights"] == "real" for name in each["formats"].split()}
    every = {name for each in own for name in each["formats"].split()} & set(FORMATS)
    return ", ".join(f"**{name}**" if name in real else name for name in FORMATS if name in every) or "–"


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    every = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in every]
