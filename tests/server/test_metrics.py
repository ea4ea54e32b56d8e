"""/metrics: vLLM's names under `octavo:`, or a reason why not; right numbers; what the dashboard asks exists."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from octavo.stats import STEP_TOKENS
from tests.server.live import Live

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json"

# Of vLLM's v1 engine (vllm/v1/metrics: loggers, spec decode), without its prefix and the counters' `_total`; and of
# its page on production metrics. The type as Prometheus has it.
VLLM = {
    "num_requests_running": "gauge", "num_requests_waiting": "gauge", "kv_cache_usage_perc": "gauge",
    "cache_config_info": "gauge", "corrupted_requests": "counter", "prefix_cache_queries": "counter",
    "prefix_cache_hits": "counter", "num_preemptions": "counter", "prompt_tokens": "counter",
    "prompt_tokens_by_source": "counter", "prompt_tokens_cached": "counter", "generation_tokens": "counter",
    "request_success": "counter", "admission_rejections": "counter", "request_prompt_tokens": "histogram",
    "request_generation_tokens": "histogram", "iteration_tokens_total": "histogram",
    "request_max_num_generation_tokens": "histogram", "request_params_n": "histogram",
    "request_params_max_tokens": "histogram", "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram", "request_time_per_output_token_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram", "request_queue_time_seconds": "histogram",
    "request_inference_time_seconds": "histogram", "request_prefill_time_seconds": "histogram",
    "request_decode_time_seconds": "histogram", "request_prefill_kv_computed_tokens": "histogram",
    "spec_decode_num_drafts": "counter", "spec_decode_num_draft_tokens": "counter",
    "spec_decode_num_accepted_tokens": "counter",
}  # fmt: skip
LEFT_OUT = {
    "engine_sleep_state": "there is no sleep mode: a server serves or ends",
    "external_prefix_cache_queries": "there is no KV connector between servers",
    "external_prefix_cache_hits": "there is no KV connector between servers",
    "mm_cache_queries": "there are no images",
    "mm_cache_hits": "there are no images",
    "prompt_tokens_recomputed": "the last token of a prompt that is cached whole counts as computed",
    "kv_block_lifetime_seconds": "blocks carry no times; vLLM samples them on request alone",
    "kv_block_idle_before_evict_seconds": "blocks carry no times; vLLM samples them on request alone",
    "kv_block_reuse_gap_seconds": "blocks carry no times; vLLM samples them on request alone",
    "lora_requests_info": "there are no adapters",
    "spec_decode_num_accepted_tokens_per_pos": "drafts differ in length, so that places in them do not compare",
    "estimated_flops_per_gpu": "`octavo profile` tells it, node by node",
    "estimated_read_bytes_per_gpu": "`octavo profile` tells it, node by node",
    "estimated_write_bytes_per_gpu": "`octavo profile` tells it, node by node",
}


def families(live: Live) -> dict[str, tuple[str, dict[str, float]]]:
    """Name without `octavo:` -> type, and the values of its samples by name and labels beyond the common ones."""
    made = {}
    for family in text_string_to_metric_families(httpx.get(f"{live.url}/metrics").text):
        samples = {}
        for each in family.samples:
            rest = ",".join(v for k, v in sorted(each.labels.items()) if k not in ("model_name", "engine"))
            samples[f"{each.name.removeprefix('octavo:')}{{{rest}}}"] = each.value
        made[family.name.removeprefix("octavo:")] = family.type, samples
    return made


def samples(live: Live) -> dict[str, float]:
    return {name: value for _, each in families(live).values() for name, value in each.items()}


def test_names_of_vllm(live: Live) -> None:
    found = families(live)
    wrong = {name: kind for name, kind in VLLM.items() if found.get(name, ("", {}))[0] != kind}
    assert not wrong, (wrong, sorted(found))
    assert not set(VLLM) & set(LEFT_OUT) and not set(LEFT_OUT) & set(found)
    assert all(len(reason) > 10 for reason in LEFT_OUT.values())
    labels = httpx.get(f"{live.url}/metrics").text
    assert re.search(r'^octavo:num_requests_running\{engine="0",model_name="smol"\} 0.0$', labels, re.M)
    assert re.search(r'^octavo:cache_config_info\{.*block_size="16".*\} 1.0$', labels, re.M)


def test_a_request_is_counted_everywhere(live: Live) -> None:
    before = samples(live)
    body = {"messages": [{"role": "user", "content": "Count to ten, please."}], "max_tokens": 9, "temperature": 0}
    more = {"n": 2, "ignore_eos": True, "seed": 1}
    usage = httpx.post(f"{live.url}/v1/chat/completions", json=body | more, timeout=60).json()["usage"]
    after = samples(live)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    for name in VLLM:
        if VLLM[name] == "histogram" and name not in ("iteration_tokens_total", "inter_token_latency_seconds"):
            assert grown(f"{name}_count{{}}") == 1, name
    assert grown("inter_token_latency_seconds_count{}") >= 1
    assert grown("request_prompt_tokens_sum{}") == usage["prompt_tokens"]
    assert grown("request_generation_tokens_sum{}") == usage["completion_tokens"] == 18
    assert grown("request_max_num_generation_tokens_sum{}") == grown("request_params_max_tokens_sum{}") == 9
    assert grown("request_params_n_sum{}") == 2 and grown("request_success_total{length}") == 2
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert grown("request_prefill_kv_computed_tokens_sum{}") == usage["prompt_tokens"] - cached
    parts = [grown(f"request_{part}_time_seconds_sum{{}}") for part in ("queue", "prefill", "decode")]
    assert min(parts) >= 0 and parts[1] > 0 and parts[2] > 0
    assert sum(parts) == pytest.approx(grown("e2e_request_latency_seconds_sum{}"))
    assert parts[1] + parts[2] == pytest.approx(grown("request_inference_time_seconds_sum{}"))
    assert grown("prompt_tokens_by_source_total{local_compute}") == grown("prompt_tokens_total{}")
    rows = grown("iteration_tokens_total_sum{}")
    assert (
        rows == grown("engine_step_rows_total{}") >= grown("prompt_tokens_total{}") + 16
    )  # one of 9 each is the prompt's
    assert grown("iteration_tokens_total_count{}") >= 9
    assert len([name for name in after if name.startswith("iteration_tokens_total_bucket")]) == len(STEP_TOKENS) + 1
    assert after["process_resident_memory_bytes{}"] > 10_000_000


def test_times_in_the_queue_are_those_of_the_engine(tmp_path: Path) -> None:
    """With room for one, the second waits as long as the first runs."""
    server = Live(tmp_path, "--max-num-seqs", "1", "--max-num-queued-reqs", "1")
    try:
        body = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": False}
        statuses: list[int] = []

        def ask() -> None:
            statuses.append(httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        found = samples(server)
        served = statuses.count(200)
        assert served >= 2 and statuses.count(429) == 6 - served >= 1
        assert found["admission_rejections_total{max_num_queued_reqs}"] == 6 - served
        decode = found["request_decode_time_seconds_sum{}"] / served
        assert found["request_queue_time_seconds_sum{}"] > 0.1 * decode
    finally:
        assert server.stop() == 0


def expressions(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("expr", "query") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(part, list):
        for each in part:
            yield from expressions(each)


def test_the_dashboard_asks_for_what_there_is(live: Live) -> None:
    assert (
        httpx.post(f"{live.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=60).status_code == 200
    )
    board = json.loads(DASHBOARD.read_text())
    asked = set(re.findall(r"(?:octavo:|process_)\w+", " ".join(expressions(board))))
    known = {re.sub(r"\{.*", "", name) for name in samples(live)}
    given = {name.removeprefix("octavo:") for name in asked}
    assert len(given) > 25 and not given - known
    assert not {word for each in expressions(board) for word in re.findall(r"vllm:\w+", each)}
    panels = [each for each in board["panels"] if each["type"] != "row"]
    assert len({each["id"] for each in board["panels"]}) == len(board["panels"])
    for each in panels:
        assert each["targets"] and all(
            target["expr"].count("(") == target["expr"].count(")") for target in each["targets"]
        )
        place = each["gridPos"]
        assert place["x"] + place["w"] <= 24
