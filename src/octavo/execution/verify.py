"""verify: is a lowered model what its Programs say, and how far is it from float32? Two questions, kept apart.

Lowered against its own origin: every node runs alone on inputs that the reference gives, and each op inside of it is
held against its contract: quantized integers and products bit-equal to the scalar oracle of order, on weights packed
anew from the file; other ops within the bound that they compute themselves. Lowered against float32: the whole model's
node outputs and logits against unquantized activations and a float32 cache.

It needs torch (execution/reference.py). It knows nothing of engines; the command prints its Report.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoints.checkpoint import Checkpoint, open_checkpoint
from octavo.config import EngineConfig
from octavo.errors import ConfigError, OctavoError, UnsupportedModel
from octavo.execution.check import Check
from octavo.execution.native import NativeExecutor
from octavo.execution.node_checks import NodeChecks
from octavo.execution.plan import MemoryPlan, make_plan
from octavo.execution.probe import Probes
from octavo.execution.runner import Runner
from octavo.execution.step import PAGE_TOKENS, PagesAppended, RowRun, SlotOpen, Step
from octavo.kernels.library import HEAD_ROWS
from octavo.lowering.lowered import LoweredNode
from octavo.machine import read_machine
from octavo.models import registry
from octavo.program.graph import Node, Program, Value
from octavo.program.trace import trace
from octavo.quantization.kv import kv_dtype
from octavo.sampling_params import SamplingParams
from octavo.tokenizer.tokenizer import Tokenizer

ROWS = 48  # of the default prompt: more than share_rows, three pages, two tiles of keys
TEXT = (
    "The sea was calm that morning, and the harbour lay under a thin fog. 12 boats had left before dawn; their crews "
    "would be back by noon, if the wind held. def tide(hour): return low + (high - low) * hour / 6"
)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Distance:
    """How far a node's output is from float32: |native - reference| / |reference| over all its elements."""

    node: str
    region: str
    relative_error: float


@dataclass(frozen=True)
class Report:
    """`checks` answer the first question, the rest the second. KL in nats, of the reference's distribution to ours."""

    model: str
    isa: str
    kv_dtype: str
    rows: int
    checks: tuple[Check, ...]
    distances: tuple[Distance, ...]
    kl: tuple[float, ...]  # per logit row
    greedy_agreement: float  # share of logit rows with the same most likely id

    @property
    def first_deviation(self) -> Check | None:
        """The first op, in the order of the Program, that breaks its contract."""
        return next((check for check in self.checks if not check.passed), None)

    @property
    def passed(self) -> bool:
        return self.first_deviation is None

    def table(self) -> str:
        """What the command prints."""
        lines = [f"{self.model}: {self.isa}, {self.kv_dtype} KV, {self.rows} rows", ""]
        lines += ["lowered against its own origin (each node on the reference's inputs)"]
        lines += [f"  {'op':14}{'checks':>7}  {'held against':24}{'worst error / bound':>20}"]
        for (op, against), some in _by_op(self.checks).items():
            worst = max(check.ratio for check in some)
            shown = f"{worst:.3g}" if worst else "0 (bit-equal)"
            lines.append(f"  {op:14}{len(some):>7}  {against:24}{shown:>20}{'' if worst <= 1 else '  DEVIATES'}")
        bad = self.first_deviation
        lines += [f"  first deviation: {bad}" if bad else "  no node deviates", ""]
        lines += ["lowered against float32 (unquantized activations, float32 KV)"]
        lines += [f"  {'region':10}{'relative error':>15}"]
        last = {distance.region: distance for distance in self.distances}
        lines += [f"  {region:10}{distance.relative_error:>15.3e}" for region, distance in last.items()]
        lines += [
            f"  KL(float32 || native) of {len(self.kl)} rows: mean {np.mean(self.kl):.2e}, max {max(self.kl):.2e} nats",
            f"  most likely id agrees in {self.greedy_agreement:.1%} of rows",
        ]
        return "\n".join(lines)


def _by_op(checks: Sequence[Check]) -> dict[tuple[str, str], list[Check]]:
    found: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        found.setdefault((check.op, check.against), []).append(check)
    return found


def verify(path: Path, config: EngineConfig, prompt_ids: Sequence[int] | None = None) -> Report:
    """Load the model at `path` as `config` says (isa, kv_cache_dtype, threads) and check it on one prompt.

    prompt_ids: at least 2 and at most config.max_num_batched_tokens ids; default: 48 ids of a fixed text. Raises
    OctavoError where torch is missing, ConfigError for bad ids, and what loading a model raises.
    """
    subject = load(path, config, prompt_ids)
    return examine(subject)


@dataclass(frozen=True)
class Subject:
    """A model in memory, natively and as the reference, and the prompt that it is examined on."""

    checkpoint: Checkpoint
    plan: MemoryPlan
    executor: NativeExecutor
    reference: Any  # module octavo.execution.reference
    weights: Mapping[str, Any]
    ids: tuple[int, ...]
    kv_dtype: str

    @property
    def logit_rows(self) -> int:
        """The last rows, as many as one chunk of the head takes."""
        return min(len(self.ids), HEAD_ROWS)

    def model(self, programs: Mapping[str, Program], kv: str) -> Any:
        """A ReferenceModel of these Programs, on pages 1, 2, ... like the native one."""
        return self.reference.ReferenceModel(programs, self.weights, positions=len(self.ids), kv_dtype=kv)


def load(path: Path, config: EngineConfig, prompt_ids: Sequence[int] | None = None) -> Subject:
    """Everything that `examine` needs. Raises like `verify`."""
    try:
        reference = importlib.import_module("octavo.execution.reference")
    except ImportError as error:
        raise OctavoError(f"verify needs torch ({error}): pip install octavo[reference]") from error
    checkpoint = open_checkpoint(path)
    ids = _prompt(checkpoint, config, prompt_ids)
    machine = read_machine()
    small = replace(config, max_model_len=max(16, len(ids) + 1), max_num_seqs=1, kv_cache_memory=None,
                    max_num_batched_tokens=max(32, len(ids)))  # fmt: skip
    threads = config.threads or machine.threads
    plan = make_plan(checkpoint, small, free=machine.memory_free, threads=threads)
    if plan.pooling is not None:
        raise UnsupportedModel(f"{checkpoint.display_name} gives vectors; verify is built for models that give text")
    bad = [token for token in ids if not 0 <= token < plan.vocab]
    if bad:
        raise ConfigError(f"prompt id {bad[0]} is not in the vocabulary of {plan.vocab} ids")
    executor = NativeExecutor(plan.layouts, plan.vocab, "", isa=config.isa)
    executor.load(checkpoint, plan.sources)
    weights = reference.load_weights(checkpoint, plan.sources)
    return Subject(checkpoint, plan, executor, reference, weights, ids, kv_dtype(config.kv_cache_dtype).name)


def _prompt(checkpoint: Checkpoint, config: EngineConfig, given: Sequence[int] | None) -> tuple[int, ...]:
    ids = Tokenizer.from_checkpoint(checkpoint).encode(TEXT)[:ROWS] if given is None else list(given)
    most = config.max_num_batched_tokens
    if not 2 <= len(ids) <= most:
        raise ConfigError(f"verify takes a prompt of 2 to {most} ids, not {len(ids)}; see --max-num-batched-tokens")
    return tuple(ids)


def examine(subject: Subject) -> Report:
    """Both questions on a loaded model."""
    logits = _run_natively(subject)
    probes = Probes(subject.executor, Probes.room(subject.plan.layouts.lowered.nodes(), len(subject.ids)))
    traced = trace(registry.build(subject.checkpoint, positions=subject.plan.context).functions)
    exact = _observe(subject, traced, subject.model(traced, "float32"))
    distances = tuple(_distances(subject, probes, exact))
    wanted = exact[traced["head"].outputs["logits"]]
    divergences, agreement = _divergence(wanted, logits)
    programs = {name: lowered.program for name, lowered in subject.plan.layouts.lowered.programs.items()}
    own = {name: programs[name] for name in ("body", "head")}
    model = subject.model(own, subject.kv_dtype)
    values = _observe(subject, own, model)
    values[programs["sample"].inputs["logits"]] = values[own["head"].outputs["logits"]]
    checks = NodeChecks(subject.checkpoint, subject.plan, subject.executor, model.executor, values, probes)
    found = [check for node, rows in _nodes(subject) for check in checks.of(node, rows)]
    return Report(
        subject.checkpoint.display_name, subject.executor.isa, subject.kv_dtype, len(subject.ids), tuple(found),
        distances, divergences, agreement,
    )  # fmt: skip


def _nodes(subject: Subject) -> Iterator[tuple[LoweredNode, int]]:
    """Every lowered node in order, and how many rows it has."""
    for name, program in subject.plan.layouts.lowered.programs.items():
        for node in program.nodes:
            yield node, len(subject.ids) if name == "body" else subject.logit_rows


def _run_natively(subject: Subject) -> Floats:
    """The prompt as one step on the tape: logits [logit rows, vocab]. The flat step keeps describing it."""
    executor, ids = subject.executor, subject.ids
    pages = tuple(range(1, 1 + -(-len(ids) // PAGE_TOKENS)))
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    opened = SlotOpen(0, ids, len(ids), params, 0, 0, len(ids) + 1, ())
    appended = tuple(PagesAppended(0, group.index, 0, pages) for group in executor.facts.groups)
    run = RowRun(0, 0, len(ids), True, len(ids) - subject.logit_rows + 1)
    Runner(executor).run(Step(0, (run,), (opened,), (), appended, pages))
    head = subject.plan.layouts.lowered.programs["head"].nodes[-1]
    ((name, buffer),) = head.writes.items()
    return floats_at(executor, buffer, subject.logit_rows, head.origin.outputs[name].width)


def floats_at(executor: NativeExecutor, name: str, rows: int, width: int) -> Floats:
    """A copy of a float buffer of the arena [rows, width]."""
    buffer = executor.layouts.lowered.arena.buffers[name]
    memory = executor.arena_view(name, rows * buffer.row_bytes).view(np.float32)
    return memory.reshape(rows, buffer.ld)[:, :width].copy()


def _observe(subject: Subject, programs: Mapping[str, Program], model: Any) -> dict[Value, Any]:
    """Every value of `body` and `head` on the prompt: numpy arrays, or quantized rows."""
    values: dict[Value, Any] = {}

    def observe(node: Node, result: Any) -> None:
        if result is not None:
            values[node.output] = result.numpy() if hasattr(result, "numpy") else result

    inputs = model.inputs([subject.reference.Rows(0, 0, subject.ids)])
    h = model.executor.run(programs["body"], inputs, observe)["h"]
    first = len(subject.ids) - subject.logit_rows
    index = np.arange(first, len(subject.ids), dtype=np.int32)
    given = {"h": h, "logit_row": subject.reference.torch.from_numpy(index)}
    model.executor.run(programs["head"], given, observe)
    for program, named in ((programs["body"], inputs), (programs["head"], given)):
        for name, value in program.inputs.items():
            if name in named:
                values[value] = named[name].numpy()
    return values


def _distances(subject: Subject, probes: Probes, exact: Mapping[Value, Any]) -> Iterator[Distance]:
    """The nodes one after the other, each on what the ones before it left, against float32."""
    executor = subject.executor
    twins = _twins(subject, exact)
    for node, rows in _nodes(subject):
        probes.run(node, rows)
        for value in node.origin.outputs.values():
            if value.dtype != "f32" or value.name not in node.writes:
                continue
            found = floats_at(executor, node.writes[value.name], rows, value.width).astype(np.float64)
            wanted = exact[twins[value]].astype(np.float64)
            error = float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))
            yield Distance(f"{node!r}", node.region, error)


def _twins(subject: Subject, exact: Mapping[Value, Any]) -> dict[Value, Value]:
    """Value after the numerics pass -> the traced one: the same nodes in the same order, but for `quantize`."""
    traced = {value.producer: value for value in exact if value.producer is not None}
    plain = [node for node in traced if node is not None]
    found: dict[Value, Value] = {}
    lowered = [
        node
        for name in ("body", "head")
        for node in subject.plan.layouts.lowered.programs[name].program.nodes
        if node.op.name not in ("quantize", "kv_write")
    ]
    for ours, theirs in zip(lowered, plain, strict=True):
        found.update(zip(ours.outputs, theirs.outputs, strict=True))
    return found


def _divergence(wanted: Floats, found: Floats) -> tuple[tuple[float, ...], float]:
    """KL per row, and how often the most likely id is the same."""
    p, q = (_log_softmax(rows) for rows in (wanted, found))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    agreement = float(np.mean(wanted.argmax(axis=1) == found.argmax(axis=1)))
    return tuple(float(each) for each in kl), agreement


def _log_softmax(rows: Floats) -> NDArray[np.float64]:
    shifted = rows.astype(np.float64) - rows.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
