"""`octavo bench`: how fast a model runs here. Alone: llama-bench's table, and the share of the roofline.

`bench latency` and `bench throughput` take vLLM's flags and print its words, as does `bench serve` (bench_serve.py),
which asks a running server. All others run in this process without the prefix cache, greedy, past the model's end ids,
over prompts of pseudo-random ids.
"""

from __future__ import annotations

import csv
import io
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import click

from octavo import LLM, SamplingParams
from octavo.checkpoints.checkpoint import Checkpoint, open_checkpoint
from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import Progress, ruled, say, size
from octavo.config import EngineConfig, LogConfig
from octavo.engine.startup import decide_threads
from octavo.errors import ConfigError
from octavo.execution.ceilings import Ceilings, measure
from octavo.execution.node_work import chosen_experts
from octavo.execution.plan import MemoryPlan, make_plan
from octavo.execution.step import PAGE_TOKENS
from octavo.machine import read_machine
from octavo.settings import Settings, client_environment
from octavo.start import find_model

PERCENTILES = (10, 25, 50, 75, 90, 99)
SEED = 1  # of the prompts


@dataclass(frozen=True)
class Loaded:
    """A model ready to be measured, and what is known of it."""

    llm: LLM
    checkpoint: Checkpoint
    plan: MemoryPlan
    threads: int

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """`count` prompts of `length` ids, the same at every run."""
        chance = random.Random(SEED)
        return [[chance.randrange(self.plan.vocab) for _ in range(length)] for _ in range(count)]

    def seconds(self, prompts: Sequence[Sequence[int]], output: int) -> float:
        """Wall time of making `output` tokens after each prompt, all at once."""
        params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        begin = time.perf_counter()
        made = self.llm.generate(list(prompts), params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        short = [len(each.outputs[0].token_ids) for each in made if len(each.outputs[0].token_ids) != output]
        if short:
            raise RuntimeError(f"{output} tokens were asked for and {short[0]} came")
        return seconds


def load(settings: Settings, sequences: int, tokens: int) -> Loaded:
    """Load the model for `sequences` at once of `tokens` each, unless the options say otherwise."""
    progress = Progress(client_environment().plain)
    try:
        files = find_model(settings.engine, progress.report)
    finally:
        progress.close()
    checkpoint, machine = open_checkpoint(files.path), read_machine()
    length = -(-tokens // PAGE_TOKENS) * PAGE_TOKENS
    given = {name: settings.value(name) for name in settings.sources if name not in ("config", "model")}
    options: dict[str, Any] = {"max_num_seqs": sequences, "max_model_len": length, "enable_prefix_caching": False}
    options |= given
    engine = replace(
        settings.engine, max_num_seqs=options["max_num_seqs"], max_model_len=options["max_model_len"],
        enable_prefix_caching=options["enable_prefix_caching"],
    )  # fmt: skip
    threads = decide_threads(engine, machine)
    plan = make_plan(checkpoint, engine, free=machine.memory_free, threads=threads)
    return Loaded(LLM(str(files.path), **options), checkpoint, plan, threads)


# -- the table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Test:
    """A line of the table. `batch` sequences of `depth` known tokens; prompt tokens, then made tokens; rates count what
    the name says."""

    prompt: int
    output: int
    batch: int = 1
    depth: int = 0

    @property
    def name(self) -> str:
        work = f"tg{self.output}" if self.output else f"pp{self.prompt}"
        return work + (f" × {self.batch}" if self.batch > 1 else "") + (f" @ d{self.depth}" if self.depth else "")

    @property
    def tokens(self) -> int:
        """What the rate counts."""
        return self.batch * (self.output or self.prompt)

    def run(self, loaded: Loaded) -> float:
        """Seconds of one run; a prompt is processed by making one token after it. Those of the depth are subtracted."""
        if not self.depth:
            return loaded.seconds(loaded.prompts(self.batch, self.prompt), self.output or 1)
        known = loaded.seconds(loaded.prompts(self.batch, self.depth), 1)
        if self.output:  # the first made token comes with the known ones
            return loaded.seconds(loaded.prompts(self.batch, self.depth), self.output + 1) - known
        return loaded.seconds(loaded.prompts(self.batch, self.depth + self.prompt), 1) - known

    def least_seconds(self, plan: MemoryPlan, ceilings: Ceilings) -> float:
        """The time that reading weights and KV, or multiplying, takes at best: the roofline."""
        steps = self.output or -(-self.prompt // plan.layouts.bounds.max_rows)
        rows = self.tokens / steps
        weights = plan.layouts.lowered.weights.values()
        kv = self.batch * (self.depth + (self.output or self.prompt) / 2) * plan.page_bytes / PAGE_TOKENS
        chosen = chosen_experts(plan.layouts.lowered)
        reading, multiplying = kv / ceilings.read_bytes_per_second, 0.0
        for weight in weights:
            used = rows if self.output or weight.n < plan.vocab else 1 / steps  # the head has one row a prompt
            taken = chosen.get(weight.name, 1)
            idle = (1 - taken / weight.experts) ** used  # the share of experts without rows, if all are as likely
            reading += (1 - idle) * weight.nbytes / ceilings.read_bytes_per_second
            used *= taken
            integer = weight.layout.startswith(("i8", "q"))
            rate = ceilings.int8_ops_per_second if integer else ceilings.bf16_flops_per_second
            multiplying += 2 * used * weight.n * weight.k / rate
        return steps * max(reading, multiplying)


def table(
    settings: Settings, n_prompt: int, n_gen: int, n_depth: int, batch: int, repetitions: int, output: str
) -> None:
    """Measure and print the lines that are not 0, and the roofline."""
    tests = [Test(n_prompt, 0, 1, n_depth)] if n_prompt else []
    tests += [Test(1, n_gen, sequences, n_depth) for sequences in sorted({1, batch})] if n_gen else []
    if not tests:
        raise ConfigError("--n-prompt 0 and --n-gen 0: nothing is left to measure.", flag="--n-prompt")
    loaded = load(settings, batch, n_depth + max(n_prompt, n_gen) + 2)
    runs = {}
    with loaded.llm:
        for test in tests:
            say(f"measuring {test.name} …")
            test.run(loaded)  # the first run warms caches and threads
            runs[test] = [test.run(loaded) for _ in range(repetitions)]
    say("measuring the ceilings of this machine …")
    ceilings = measure(isa=settings.engine.isa, threads=loaded.threads)
    records = [_record(test, seconds, loaded, ceilings) for test, seconds in runs.items()]
    for line in WRITERS[output](records):
        click.echo(line)
    if output == "md":
        shares = [f"{record['test']} {100 * record['roofline']:.0f} %" for record in records]
        click.echo(
            f"roofline: {', '.join(shares)} of {ceilings.read_bytes_per_second / 1e9:.1f} GB/s read and "
            f"{ceilings.int8_ops_per_second / 1e12:.2f} int8 Tops/s"
        )


def _record(test: Test, seconds: Sequence[float], loaded: Loaded, ceilings: Ceilings) -> dict[str, Any]:
    """Figures under llama-bench's names; nanoseconds, tokens a second. roofline: the share that was reached."""
    rates = [test.tokens / each for each in seconds]
    spread = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in (seconds, rates)]
    checkpoint = loaded.checkpoint
    return {
        "model_filename": str(checkpoint.path),
        "model_type": f"{checkpoint.display_name} {checkpoint.weight_format}",
        "model_size": loaded.plan.regions.weights,
        "model_n_params": sum(prod(tensor.shape) for tensor in checkpoint.tensors.values()),
        "backends": f"native {ceilings.isa}",
        "n_threads": loaded.threads,
        "test": test.name,
        "n_prompt": 0 if test.output else test.prompt,
        "n_gen": test.output,
        "n_depth": test.depth,
        "n_seqs": test.batch,
        "avg_ns": round(1e9 * statistics.mean(seconds)),
        "stddev_ns": round(1e9 * spread[0]),
        "avg_ts": statistics.mean(rates),
        "stddev_ts": spread[1],
        "samples_ns": [round(1e9 * each) for each in seconds],
        "samples_ts": rates,
        "roofline": test.least_seconds(loaded.plan, ceilings) / statistics.mean(seconds),
    }


def _markdown(records: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [["model", "size", "params", "backend", "threads", "test", "t/s"]]
    for each in records:
        count = each["model_n_params"]
        rows.append([
            each["model_type"], size(each["model_size"]),
            f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M",
            each["backends"], str(each["n_threads"]), each["test"], f"{each['avg_ts']:,.1f} ± {each['stddev_ts']:,.1f}",
        ])  # fmt: skip
    return ruled(rows, right=frozenset({1, 2, 4, 6}))


def _csv(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Without the lists of samples, as llama-bench's."""
    names = [name for name in records[0] if not name.startswith("samples")]
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerows([names, *([record[name] for name in names] for record in records)])
    return text.getvalue().splitlines()


WRITERS: dict[str, Callable[[Sequence[Mapping[str, Any]]], list[str]]] = {
    "md": _markdown,
    "csv": _csv,
    "json": lambda records: [json.dumps(records, indent=2, ensure_ascii=False)],
    "jsonl": lambda records: [json.dumps(record, ensure_ascii=False) for record in records],
}


# -- vLLM's two --------------------------------------------------------------------------------------------------------


def latency(
    settings: Settings,
    input_len: int,
    output_len: int,
    batch_size: int,
    num_iters_warmup: int,
    num_iters: int,
    output_json: str | None,
) -> None:
    """Time of one batch from its prompts to its last token, several times."""
    loaded = load(settings, batch_size, input_len + output_len)
    prompts = loaded.prompts(batch_size, input_len)
    with loaded.llm:
        for number in range(num_iters_warmup):
            say(f"warm-up {number + 1} of {num_iters_warmup}")
            loaded.seconds(prompts, output_len)
        seconds = []
        for number in range(num_iters):
            seconds.append(loaded.seconds(prompts, output_len))
            say(f"iteration {number + 1} of {num_iters}: {seconds[-1]:.3f} s")
    percentiles = {each: percentile(seconds, each) for each in PERCENTILES}
    click.echo(f"Avg latency: {statistics.mean(seconds):.6f} seconds")
    for each, value in percentiles.items():
        click.echo(f"{each}% percentile latency: {value:.6f} seconds")
    _write(output_json, {"avg_latency": statistics.mean(seconds), "latencies": seconds, "percentiles": percentiles})


def throughput(settings: Settings, input_len: int, output_len: int, num_prompts: int, output_json: str | None) -> None:
    """Requests and tokens a second when all prompts are there at once."""
    loaded = load(settings, min(num_prompts, settings.engine.max_num_seqs), input_len + output_len)
    with loaded.llm:
        loaded.seconds(loaded.prompts(1, input_len), 1)
        say(f"{num_prompts} prompts of {input_len} tokens, {output_len} tokens each …")
        seconds = loaded.seconds(loaded.prompts(num_prompts, input_len), output_len)
    made, read = num_prompts * output_len, num_prompts * input_len
    click.echo(
        f"Throughput: {num_prompts / seconds:.2f} requests/s, {(made + read) / seconds:.2f} total tokens/s, "
        f"{made / seconds:.2f} output tokens/s"
    )
    click.echo(f"Total num prompt tokens:  {read}")
    click.echo(f"Total num output tokens:  {made}")
    figures = {
        "elapsed_time": seconds, "num_requests": num_prompts, "total_num_tokens": made + read,
        "requests_per_second": num_prompts / seconds, "tokens_per_second": (made + read) / seconds,
    }  # fmt: skip
    _write(output_json, figures)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` % of the values lie, linearly between two of them."""
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def _write(path: str | None, figures: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        Path(path).write_text(json.dumps(figures, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"--output-json {path}: {error.strerror}.", flag="--output-json") from None


def _count(flags: Sequence[str], default: int, help: str, least: int = 1) -> click.Option:
    return click.Option(
        list(flags), type=click.IntRange(least), default=default, metavar="N", help=f"{help} [{default}]"
    )


_JSON = click.Option(["--output-json"], metavar="FILE", help="the figures as JSON")
_LENGTHS = (_count(["--input-len"], 32, "tokens of a prompt"), _count(["--output-len"], 128, "tokens made after it"))
_NOUNS = (EngineConfig, LogConfig)

TABLE = OptionCommand(
    "bench",
    table,
    "Prompt processing, generation, and generation of a batch, in tokens a second, and the share of the machine's "
    "roofline. `bench latency`, `bench throughput` and `bench serve` take vLLM's flags.",
    nouns=_NOUNS,
    own=[
        _count(["--n-prompt", "-p"], 512, "tokens of the prompt test; 0: without it", least=0),
        _count(["--n-gen", "-n"], 128, "tokens of the generation tests; 0: without them", least=0),
        _count(["--n-depth", "-d"], 0, "tokens that are known before each test", least=0),
        _count(["--batch"], 32, "sequences of the last test; 1: without it"),
        _count(["--repetitions", "-r"], 3, "runs of each test after one to warm up"),
        click.Option(
            ["--output", "-o"], type=click.Choice(list(WRITERS)), default="md", help="form, as llama-bench's [md]"
        ),
    ],
)
LATENCY = OptionCommand(
    "bench latency",
    latency,
    "Time of one batch, from its prompts to its last token.",
    nouns=_NOUNS,
    own=[
        *_LENGTHS,
        _count(["--batch-size"], 8, "prompts at once"),
        _count(["--num-iters-warmup"], 2, "runs before those that count", least=0),
        _count(["--num-iters"], 5, "runs"),
        _JSON,
    ],
)
THROUGHPUT = OptionCommand(
    "bench throughput",
    throughput,
    "Requests and tokens a second when all prompts are there at once.",
    nouns=_NOUNS,
    own=[*_LENGTHS, _count(["--num-prompts"], 64, "prompts"), _JSON],
)


class Bench:
    """The command: its first word chooses."""

    @property
    def parsers(self) -> dict[str, OptionCommand]:
        """By that word."""
        from octavo.cli.bench_serve import SERVE

        return {"": TABLE, "latency": LATENCY, "throughput": THROUGHPUT, "serve": SERVE}

    def main(self, args: list[str], prog_name: str, standalone_mode: bool) -> Any:
        """As a click command's."""
        made = self.parsers.get(args[0]) if args else None
        if made is None:
            return TABLE.main(args, prog_name=prog_name, standalone_mode=standalone_mode)
        return made.main(args[1:], prog_name=f"{prog_name} {args[0]}", standalone_mode=standalone_mode)


command = Bench()
