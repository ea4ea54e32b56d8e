"""`octavo bench serve`: latencies and throughput of a server that runs, with vLLM's flags, words and result file.

Any server with OpenAI's routes may be measured. How requests are sent and read is bench_client.py's, what they ask is
bench_data.py's.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from octavo.cli.bench_client import Outcome, Sent, send
from octavo.cli.bench_data import NAMES, Asked, Lengths, Tokens, conversations, custom, random_prompts
from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import Progress, say
from octavo.cli.web import Address, Unreachable, ask, bearer
from octavo.config import LogConfig
from octavo.errors import ConfigError, OctavoError
from octavo.settings import Settings, client_environment

WIDTH = 50  # of the block
REQUEST_SECONDS = 6 * 3600.0
ROUTES = {"vllm": "/v1/completions", "openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
SHOWN = {
    "ttft": ("Time to First Token", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-token Latency", "ITL"),
    "e2el": ("End-to-end Latency", "E2EL"),
}


@dataclass(frozen=True)
class Plan:
    """The command's own options, as they were given."""

    given: dict[str, Any]
    address: Address
    key: str | None
    path: str
    chat: bool
    goals: dict[str, float]  # milliseconds
    percentiles: tuple[float, ...]

    @property
    def headers(self) -> dict[str, str]:
        made = dict(each.partition("=")[::2] for each in self.given["header"])
        return {**bearer(self.key), **made}


def run(settings: Settings, **given: Any) -> int:
    """Measure and print; 1 if a request failed."""
    plan = planned(given)
    made = asyncio.run(_measure(plan))
    for line in block(made, given["percentile_metrics"].split(","), plan.percentiles):
        click.echo(line)
    if given["save_result"]:
        _save(made, plan)
    failures = sorted({each for each in made["errors"] if each})
    for each in failures[:3]:
        say(f"failed: {each}")
    return 1 if failures else 0


def planned(given: dict[str, Any]) -> Plan:
    """What is asked for. Raises ConfigError."""
    client = client_environment()
    url = given["base_url"] or client.base_url or f"http://{given['host']}:{given['port']}"
    path = given["endpoint"] or ROUTES[given["backend"]]
    for name in given["percentile_metrics"].split(","):
        if name not in SHOWN:
            raise ConfigError(f"--percentile-metrics: expected {', '.join(SHOWN)}, got {name!r}.", flag=name)
    try:
        percentiles = tuple(float(each) for each in given["metric_percentiles"].split(","))
    except ValueError:
        raise ConfigError(
            "--metric-percentiles: expected numbers between commas, as 50,99.", flag="--metric-percentiles"
        ) from None
    goals = {}
    for each in given["goodput"]:
        name, _, value = each.partition(":")
        if name not in ("ttft", "tpot", "e2el") or not value.replace(".", "", 1).isdecimal():
            raise ConfigError(f"--goodput: expected ttft:MS, tpot:MS or e2el:MS, got {each!r}.", flag="--goodput")
        goals[name] = float(value)
    return Plan(given, Address.of(url), client.api_key, path, path.endswith("chat/completions"), goals, percentiles)


async def _measure(plan: Plan) -> dict[str, Any]:
    given = plan.given
    model = given["served_model_name"] or given["model"] or await _served(plan)
    say(f"{model} at {plan.address}{plan.path}, {given['num_prompts']:,} prompts ({given['dataset_name']})")
    prompts = await _prompts(plan, Tokens(plan.address, model, plan.key))
    exact = given["ignore_eos"] or given["dataset_name"] == "random"
    more: dict[str, Any] = {"temperature": given["temperature"], **({"ignore_eos": True} if exact else {})}
    for name in ("top_p", "top_k"):
        more |= {} if given[name] is None else {name: given[name]}
    bodies = [json.dumps(each.body(model, plan.chat, more)).encode() for each in prompts]

    async def one(body: bytes) -> Sent:
        return await send(plan.address, plan.path, body, plan.headers, REQUEST_SECONDS)

    first = (await one(bodies[0])).outcome()
    if first.error:
        raise OctavoError(f"{plan.address}{plan.path}: {first.error}")
    await asyncio.gather(*(one(body) for body in bodies[: given["num_warmups"]]))
    begin = time.perf_counter()
    sent = await _send_all(bodies, plan, one)
    seconds = time.perf_counter() - begin
    return result(plan, model, [each.outcome() for each in sent], seconds)


async def _served(plan: Plan) -> str:
    """The first model of the server."""
    try:
        found = await ask(plan.address, "GET", "/v1/models", key=plan.key, seconds=10.0)
    except Unreachable as error:
        raise OctavoError(f"{error.message}. Start one: octavo serve") from None
    if found.status != 200:
        raise OctavoError(f"{plan.address}/v1/models answers {found.status}: {found.message}")
    return str(found.json()["data"][0]["id"])


async def _prompts(plan: Plan, tokens: Tokens) -> list[Asked]:
    given = plan.given
    count, path = given["num_prompts"], given["dataset_path"]
    inputs, outputs = given["input_len"], given["output_len"]
    if given["dataset_name"] == "random":
        lengths = Lengths(
            inputs or given["random_input_len"], outputs or given["random_output_len"],
            given["random_range_ratio"], given["random_prefix_len"],
        )  # fmt: skip
        return await random_prompts(lengths, count, given["seed"], plan.chat, tokens)
    if path is None:
        raise ConfigError(f"--dataset-name {given['dataset_name']} needs --dataset-path FILE.", flag="--dataset-path")
    file = Path(path).expanduser()
    if given["dataset_name"] == "sharegpt":
        return await conversations(file, outputs or given["sharegpt_output_len"], count, given["seed"], tokens)
    return await custom(file, outputs or given["custom_output_len"], count)


async def _send_all(bodies: Sequence[bytes], plan: Plan, one: Any) -> list[Sent]:
    """All, at the rate and not more at once than the options say."""
    given = plan.given
    room = asyncio.Semaphore(given["max_concurrency"] or len(bodies))
    progress = Progress(client_environment().plain, counted="requests")
    done = 0

    async def in_its_turn(body: bytes) -> Sent:
        nonlocal done
        async with room:
            made: Sent = await one(body)
        done += 1
        if not given["disable_tqdm"]:
            progress.report("bench", done, len(bodies))
        return made

    tasks = []
    for body, wait in zip(bodies, waits(given["request_rate"], given["burstiness"], len(bodies), given["seed"]),
                          strict=True):  # fmt: skip
        if wait:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(in_its_turn(body)))
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        progress.close()


def waits(rate: float, burstiness: float, count: int, seed: int) -> list[float]:
    """Seconds before each request: of a Poisson process where burstiness is 1, steadier above; none for a rate of
    inf. They are stretched so that all of them together last as long as the rate says."""
    if math.isinf(rate):
        return [0.0] * count
    chance = random.Random(seed)
    drawn = [0.0, *(chance.gammavariate(burstiness, 1.0 / (rate * burstiness)) for _ in range(count - 1))]
    stretch = (count - 1) / rate / sum(drawn) if sum(drawn) else 0.0
    return [each * stretch for each in drawn]


# -- figures -----------------------------------------------------------------------------------------------------------


def result(plan: Plan, model: str, outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Under vLLM's names."""
    given = plan.given
    good = [each for each in outcomes if not each.error]
    read, made = sum(each.prompt_tokens for each in good), sum(each.output_tokens for each in good)
    rate = given["request_rate"]
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "backend": given["backend"],
        "label": given["label"],
        "model_id": model,
        "num_prompts": len(outcomes),
        **dict(each.partition("=")[::2] for each in given["metadata"]),
        "request_rate": "inf" if math.isinf(rate) else rate,
        "burstiness": given["burstiness"],
        "max_concurrency": given["max_concurrency"],
        "duration": seconds,
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "total_input_tokens": read,
        "total_output_tokens": made,
        "request_throughput": len(good) / seconds,
        "request_goodput": sum(_meets(each, plan.goals) for each in good) / seconds if plan.goals else None,
        "output_throughput": made / seconds,
        "total_token_throughput": (read + made) / seconds,
        "input_lens": [each.prompt_tokens for each in outcomes],
        "output_lens": [each.output_tokens for each in outcomes],
        "ttfts": [each.ttft for each in outcomes],
        "itls": [each.itls for each in outcomes],
        "generated_texts": [each.text for each in outcomes],
        "errors": [each.error for each in outcomes],
        **_statistics("ttft", [each.ttft for each in good], plan.percentiles),
        **_statistics("tpot", [each.tpot for each in good if each.tpot is not None], plan.percentiles),
        **_statistics("itl", [gap for each in good for gap in each.itls], plan.percentiles),
        **_statistics("e2el", [each.latency for each in good], plan.percentiles),
    }


def _meets(each: Outcome, goals: dict[str, float]) -> bool:
    reached = {"ttft": each.ttft, "tpot": each.tpot or 0.0, "e2el": each.latency}
    return all(1000 * reached[name] <= goal for name, goal in goals.items())


def _statistics(name: str, values: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    from octavo.cli.bench import percentile

    ms = [1000 * each for each in values] or [0.0]
    made = {"mean": statistics.mean(ms), "median": statistics.median(ms), "std": statistics.pstdev(ms)}
    made |= {f"p{each:g}": percentile(ms, each) for each in percentiles}
    return {f"{word}_{name}_ms": value for word, value in made.items()}


def block(made: dict[str, Any], shown: Sequence[str], percentiles: Sequence[float]) -> list[str]:
    """What vLLM prints, label for label."""
    rows: list[tuple[str, Any]] = [("Successful requests", made["completed"]), ("Failed requests", made["failed"])]
    if made["max_concurrency"]:
        rows.append(("Maximum request concurrency", made["max_concurrency"]))
    if made["request_rate"] != "inf":
        rows.append(("Request rate configured (RPS)", float(made["request_rate"])))
    rows += [
        ("Benchmark duration (s)", made["duration"]),
        ("Total input tokens", made["total_input_tokens"]),
        ("Total generated tokens", made["total_output_tokens"]),
        ("Request throughput (req/s)", made["request_throughput"]),
        ("Output token throughput (tok/s)", made["output_throughput"]),
        ("Total token throughput (tok/s)", made["total_token_throughput"]),
    ]
    if made["request_goodput"] is not None:
        rows.insert(-2, ("Request goodput (req/s)", made["request_goodput"]))
    lines = [" Serving Benchmark Result ".center(WIDTH, "="), *map(_row, rows)]
    for name in shown:
        title, short = SHOWN[name]
        words = [("Mean", "mean"), ("Median", "median"), *((f"P{each:g}", f"p{each:g}") for each in percentiles)]
        lines.append(title.center(WIDTH, "-"))
        lines += [_row((f"{word} {short} (ms)", made[f"{key}_{name}_ms"])) for word, key in words]
    return [*lines, "=" * WIDTH]


def _row(row: tuple[str, Any]) -> str:
    label, value = row
    return f"{label + ':':<40} {f'{value:.2f}' if isinstance(value, float) else value:<10}".rstrip()


def _save(made: dict[str, Any], plan: Plan) -> None:
    given = plan.given
    if not given["save_detailed"]:
        lists = ("input_lens", "output_lens", "ttfts", "itls", "generated_texts", "errors")
        made = {name: value for name, value in made.items() if name not in lists}
    width = f"-concurrency{given['max_concurrency']}" if given["max_concurrency"] else ""
    model = made["model_id"].rsplit("/", 1)[-1].replace(":", "-")
    name = f"{given['label'] or given['backend']}-{made['request_rate']}qps{width}-{model}-{made['date']}.json"
    path = Path(given["result_dir"] or ".").expanduser() / (given["result_filename"] or name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made) + "\n")
    except OSError as error:
        raise ConfigError(f"--result-dir {path.parent}: {error.strerror}.", flag="--result-dir") from None
    say(f"result in {path}")


def _option(flag: str, kind: Any, default: Any, help: str, metavar: str = "N") -> click.Option:
    shown = "" if default is None else f" [{default}]"
    return click.Option([flag], type=kind, default=default, metavar=metavar, help=help + shown)


_COUNT, _AT_LEAST_0 = click.IntRange(1), click.IntRange(0)
SERVE = OptionCommand(
    "bench serve",
    run,
    "Latencies and throughput of a running server: time to first token, time per token, between tokens. vLLM's flags, "
    "words and result file; any server with OpenAI's routes. Exit code 1 if a request failed.",
    nouns=(LogConfig,),
    own=[
        click.Option(
            ["--backend"],
            type=click.Choice(list(ROUTES)),
            default="openai",
            help="completions, or openai-chat [openai]",
        ),
        _option("--base-url", str, None, "the server (default: OPENAI_BASE_URL, else --host and --port)", "URL"),
        _option("--host", str, "127.0.0.1", "its address", "ADDRESS"),
        _option("--port", click.IntRange(1, 65535), 8000, "its port"),
        _option("--endpoint", str, None, "its route (default: the backend's)", "PATH"),
        _option("--model", str, None, "name of the model (default: the first that is served)", "NAME"),
        _option("--served-model-name", str, None, "the same, over --model", "NAME"),
        click.Option(["--dataset-name"], type=click.Choice(NAMES), default="random", help="what is asked [random]"),
        _option("--dataset-path", str, None, "file of sharegpt or custom", "FILE"),
        _option("--num-prompts", _COUNT, 1000, "requests"),
        _option("--input-len", _COUNT, None, "the same as --random-input-len"),
        _option("--output-len", _COUNT, None, "tokens of each answer, whatever the dataset"),
        _option("--random-input-len", _COUNT, 1024, "tokens of a random prompt"),
        _option("--random-output-len", _COUNT, 128, "tokens made after it"),
        _option("--random-range-ratio", click.FloatRange(0, 1), 0.0, "lengths vary by this share", "X"),
        _option("--random-prefix-len", _AT_LEAST_0, 0, "tokens that all random prompts begin with"),
        _option("--sharegpt-output-len", _COUNT, None, "tokens of an answer (default: as in the file)"),
        _option("--custom-output-len", _COUNT, 256, "tokens of an answer where the file does not say"),
        _option("--request-rate", click.FloatRange(0, min_open=True), math.inf, "requests a second", "X"),
        _option("--burstiness", click.FloatRange(0, min_open=True), 1.0, "1: Poisson; above: steadier", "X"),
        _option("--max-concurrency", _COUNT, None, "requests at once"),
        _option("--num-warmups", _AT_LEAST_0, 0, "requests before those that count"),
        _option("--seed", int, 0, "of prompts and arrivals"),
        _option("--temperature", click.FloatRange(0), 0.0, "sampling", "X"),
        _option("--top-p", click.FloatRange(0, 1), None, "sampling", "X"),
        _option("--top-k", _AT_LEAST_0, None, "sampling"),
        click.Option(["--ignore-eos"], is_flag=True, help="go on past the model's end (random always does)"),
        _option("--percentile-metrics", str, "ttft,tpot,itl", f"which are shown: {', '.join(SHOWN)}", "LIST"),
        _option("--metric-percentiles", str, "99", "which percentiles", "LIST"),
        click.Option(["--goodput"], multiple=True, metavar="NAME:MS", help="goal (ttft, tpot, e2el); may be repeated"),
        click.Option(["--header"], multiple=True, metavar="NAME=VALUE", help="of each request; may be repeated"),
        click.Option(["--save-result"], is_flag=True, help="the figures as a JSON file"),
        click.Option(["--save-detailed"], is_flag=True, help="with those of every request"),
        _option("--result-dir", str, None, "where it goes (default: here)", "DIR"),
        _option("--result-filename", str, None, "its name (default: made of rate, model, date)", "FILE"),
        click.Option(["--metadata"], multiple=True, metavar="NAME=VALUE", help="put into it; may be repeated"),
        _option("--label", str, None, "the same, and in its name", "TEXT"),
        click.Option(["--disable-tqdm"], is_flag=True, help="no progress"),
    ],
    model_argument=False,
)
