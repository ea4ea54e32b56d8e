"""The figures of the benchmarks and what is made of them: ratios, shares, verdicts, and peers that stay loaded."""

import json
import os
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import bars  # noqa: E402
import speed_bars  # noqa: E402
from ceiling import SLOTS, Work, decode_bytes, prefill_work  # noqa: E402
from comparison import Comparison  # noqa: E402
from peers import COLUMNS, Column, Llama, Loaded, Running  # noqa: E402

from octavo.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from octavo.config import EngineConfig  # noqa: E402
from octavo.execution.ceilings import Ceilings  # noqa: E402
from octavo.execution.plan import make_plan  # noqa: E402
from tests.real import smollm2  # noqa: E402

WIDE = Ceilings("avx512bf16", 2, 50e9, 2000e9, 1000e9)
FAST = Ceilings("avx512bf16", 2, 100e9, 4000e9, 1000e9)


def comparison(**rates: dict[str, list[float]]) -> Comparison:
    return Comparison(
        speed_bars.SMOLLM2, "2026-01-02", "a CPU", "avx512bf16", 2, 2,
        {"decode 8": [WIDE, FAST], "prefill 512": [WIDE, FAST]}, {"decode 8": 800_000_000}, {"decode 8": 8},
        {"prefill 512": Work(400e9, 100e9)}, rates,
    )  # fmt: skip


def test_ratios_and_shares_are_medians_of_those_within_a_round() -> None:
    found = comparison(
        octavo={"decode 8": [100.0, 300.0], "prefill 512": [512.0, 1024.0]}, peer={"decode 8": [50.0, 200.0]}
    )
    assert found.median("octavo", "decode 8") == 200
    assert found.ratio("peer", "decode 8") == pytest.approx((2.0 + 1.5) / 2)
    assert found.ratio("peer", "prefill 512") is None
    # 100 tok/s of 8 sequences are 12.5 steps of 0.8 GB: 10 of 50 GB/s; then 30 of 100.
    assert found.bandwidth("decode 8") == pytest.approx((0.2 + 0.3) / 2)
    # 0.2 + 0.1 s, then 0.1 + 0.1 s at least for 512 tokens; 1 s and 0.5 s were taken.
    assert found.ceiling("prefill 512") == pytest.approx((0.3 + 0.4) / 2)
    assert found.bandwidth("prefill 512") is None and found.ceiling("decode 8") is None


def test_a_comparison_survives_its_file(tmp_path: Path) -> None:
    found = comparison(octavo={"decode 8": [100.0, 300.0]}, peer={"decode 8": []})
    found.write(tmp_path / "run.json")
    assert Comparison.read(tmp_path / "run.json") == found
    text = found.markdown()
    assert "a CPU, 2 threads, variant avx512bf16" in text and "read 75.0 (50.0 to 100.0) GB/s" in text
    assert "| octavo | 200 (100 to 300) |" in text and "| octavo: share of read bandwidth | 25 % |" in text


def test_verdicts_take_the_newest_run_that_has_the_figure(tmp_path: Path) -> None:
    bar = next(each for each in speed_bars.BARS if each.column == "decode 32" and each.model == speed_bars.SMOLLM2)
    assert speed_bars.verdict(bar, []).word == "not measured"
    old = comparison(octavo=rounds(300.0), vLLM=rounds(50.0), OpenVINO=rounds(200.0))
    new = comparison(octavo=rounds(500.0), OpenVINO=rounds(200.0))
    for each in (old, new):
        each.rates["llama.cpp"] = rounds(100.0)
    llama = "5.00 × llama.cpp (must 1)"
    new.date = "2026-02-01"
    for name, each in (("a", new), ("b", old)):
        each.write(tmp_path / f"{name}.json")
    (tmp_path / "bars.json").write_text("{}")
    assert [each.date for each in speed_bars.runs(tmp_path)] == ["2026-02-01", "2026-01-02"]
    verdict = speed_bars.verdict(bar, speed_bars.runs(tmp_path))
    assert verdict.text == f"{llama} · 2.50 × OpenVINO (must 1.7, goal 2.2) · 6.00 × vLLM (goal 3, 2026-01-02)"
    assert (verdict.word, verdict.date) == ("goal met", "2026-02-01")
    assert speed_bars.verdict(bar, [old]).word == "MISSED"
    assert speed_bars.verdict(bar, [new]).word == "met"  # a goal without a figure is not reached


def rounds(rate: float, number: int = 5) -> dict[str, list[float]]:
    return {"decode 32": [rate] * number}


def test_fewer_rounds_than_asked_settle_nothing() -> None:
    bar = next(each for each in speed_bars.BARS if each.column == "decode 32" and each.model == speed_bars.QWEN)
    whole, short = (comparison(octavo=rounds(300.0, n), OpenVINO=rounds(200.0, n)) for n in (5, 1))
    whole.model = short.model = bar.model
    verdict = speed_bars.verdict(bar, [short])
    assert verdict.word == "not measured" and verdict.text == "1.50 × OpenVINO (must 1.4, goal 1.8, 1 of 5 rounds)"
    assert speed_bars.verdict(bar, [short, whole]).word == "met"


def test_a_ceiling_beside_the_matrix_unit_is_named() -> None:
    bar = next(each for each in speed_bars.BARS if each.column == "prefill 512" and each.model == speed_bars.SMOLLM2)
    found = comparison(octavo={"prefill 512": [300.0] * 5})
    found.isa, found.work = "amx", {"prefill 512": Work(512.0, 0.0)}
    found.ceilings = {"prefill 512": [Ceilings("amx", 2, 1.0, 400.0, 1.0)] * 5}
    assert (
        "75 % of the computed ceiling of the vector units, beside the matrix unit"
        in speed_bars.verdict(bar, [found]).text
    )


def test_limits_judge_figures() -> None:
    bar = bars.Bar(
        "x", "4", "", str, (bars.Limit(r": ([\d.]+) s", 2, 1), bars.Limit(r"([\d.]+) %", 90, 95, most=False))
    )
    assert bar.word("m: 0.90 s, 97.1 %") == "goal met"
    assert bar.word("m: 1.50 s, 97.1 %") == "met"
    assert bar.word("m: 0.50 s, 89.9 %") == "MISSED"
    assert bar.word("m: 0.50 s") == bar.word("") == bar.word(bars.UNMEASURED + "m: 0.5 s, 99 %") == "not measured"
    assert bars.Bar("x", "4", "", str).word("72 passed") == "met"


def test_every_bar_names_a_column() -> None:
    assert {each.column for each in speed_bars.BARS} <= {column.name for column in COLUMNS}
    assert set(speed_bars.COLUMNS) == {column.name for column in COLUMNS}


def test_the_ceiling_counts_slots() -> None:
    assert {name: round(100 * slots.share) for name, slots in SLOTS.items()} == {
        **dict.fromkeys(("q4_0", "q5_0", "q8_0", "iq4_nl", "iq4_xs", "mxfp4", "tq1_0", "tq2_0"), 80),
        **dict.fromkeys(("iq3_s", "iq3_xxs", "iq2_xxs", "iq1_s"), 80),
        **dict.fromkeys(("q4_1", "q5_1", "int8", "q4_k", "q5_k"), 73),
        **dict.fromkeys(("q3_k", "q6_k", "iq2_s", "iq2_xs", "iq1_m"), 67),
        "q2_k": 53,
    }  # fmt: skip


def test_what_smollm2_asks_of_a_machine() -> None:
    """Against the model's shape, counted by hand: 30 layers of 576, 9 heads of 64, 3 of them for keys, 1536 between."""
    plan = make_plan(open_checkpoint(smollm2()), EngineConfig(max_model_len=1024), free=8 << 30, threads=2)
    lowered = plan.layouts.lowered
    weights = 30 * (576 * 576 * 2 + 576 * 192 * 2 + 3 * 576 * 1536)
    head = 49152 * 576
    packed = weights // 32 * 20 + head // 32 * 34  # Q4_1: 20 bytes for 32; the tied head's Q8_0: 34
    keys = 30 * 2 * 192 * 2
    assert decode_bytes(lowered, 8, 160) == packed + 8 * 160 * keys
    work = prefill_work(lowered, 512)
    assert work.int8 == pytest.approx(2 * 512 * weights / SLOTS["q4_1"].share + 2 * head / SLOTS["q8_0"].share)
    assert work.bf16 == pytest.approx(30 * 4 * 576 * 512 * 513 / 2)


DRIVER = """
from turns import take_turns
take_turns(lambda: (lambda prompts, answer: [answer for p in prompts if max(p) < 9], 9))
"""


def test_a_loaded_peer_takes_turns_and_is_stopped_between_them(tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(f"import sys; sys.path.insert(0, {str(BENCH)!r}){DRIVER}")
    peer = Loaded("peer", Path(sys.executable), str(tmp_path / "driver.py"), Path("model"), 2, {"default": []})
    column = Column("decode 3", 3, 7, True)
    assert peer.rate(column, "default") != 0
    pid = peer.running["default"].pid
    while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        pass  # the signal is on its way
    assert peer.rate(column, "default") != 0
    peer.keep(set())
    assert peer.running == {}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_peer_that_cannot_load_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)exit 1: .*no such format"):
        Running([sys.executable, "-c", "raise SystemExit('no such format')"])


def test_llamas_tables_are_read(tmp_path: Path) -> None:
    rows = "| PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | T s | S t/s |\n|-|-|-|-|-|-|-|-|-|-|\n"
    rows += "|   128 |     64 |    8 |   1536 |    0.420 |   2438.10 |    1.859 |   275.42 |    2.279 |   673.98 |\n"
    arguments = tmp_path / "arguments"
    for program, output in (("llama-batched-bench", rows), ("llama-bench", json.dumps([{"avg_ts": 461.5}]))):
        path = tmp_path / program
        path.write_text(f"#!/bin/sh\necho \"$@\" > {arguments}\ncat <<'E'\n{output}\nE\n")
        path.chmod(0o755)
    peer = Llama("fork", tmp_path, Path("m.gguf"), 2, repacks=True)
    prefill, decode = COLUMNS[0], COLUMNS[3]
    assert peer.settings(decode) == ["-fa 1 -rtr 0", "-fa 1 -rtr 1", "-fa 0 -rtr 0", "-fa 0 -rtr 1"]
    assert peer.rate(decode, "-fa 1 -rtr 1") == 275.42
    assert arguments.read_text().split()[-5:] == ["-npl", "8", "-fa", "on", "-rtr"]
    assert peer.rate(prefill, "-fa 0 -rtr 0") == 461.5
    assert arguments.read_text().split()[-4:] == ["-fa", "0", "-rtr", "0"]
