"""Options: how values are written, where they come from, and what is told about a wrong one."""

import dataclasses
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.config import EngineConfig, ServerConfig, all_options
from octavo.errors import ConfigError
from octavo.option import read_bytes, read_count, read_duration, read_texts
from octavo.settings import client_environment, hub_cache, resolve


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("32k", 32_000),
        ("32K", 32_768),
        ("1.5k", 1_500),
        ("0.5K", 512),
        ("143,360", 143_360),
        ("1_000", 1_000),
        ("7", 7),
    ],
)
def test_counts(text: str, value: int) -> None:
    assert read_count(text) == value


@pytest.mark.parametrize("text", ["", "k", "4,2", "1.5", "3x", "0x10", "1e3", "٣2k!", "--"])
def test_wrong_counts(text: str) -> None:
    with pytest.raises(ValueError):
        read_count(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4GiB", 4 << 30), ("4Gi", 4 << 30), ("4G", 4 << 30), ("4GB", 4 * 10**9), ("4g", 4 * 10**9),
        ("512MiB", 512 << 20), ("1.5 GiB", 3 << 29), ("100", 100), ("64B", 64), ("1TiB", 1 << 40), ("8kb", 8_000),
    ],
)  # fmt: skip
def test_bytes(text: str, value: int) -> None:
    assert read_bytes(text) == value


@given(st.integers(0, 2**20), st.sampled_from("KMGT"))
def test_binary_suffixes_mean_powers_of_1024(n: int, letter: str) -> None:
    expected = n * 1024 ** ("KMGT".index(letter) + 1)
    assert read_bytes(f"{n}{letter}iB") == read_bytes(f"{n}{letter}") == read_count(f"{n}{letter}") == expected


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [("5m", "s", 300.0), ("30", "s", 30.0), ("1.5h", "s", 5400.0), ("250ms", "s", 0.25), ("1s", "ms", 1000.0)],
)
def test_durations(text: str, unit: str, value: float) -> None:
    assert read_duration(text, unit) == value


def test_lists() -> None:
    assert read_texts('["a", "b,c"]') == ("a", "b", "c")
    assert read_texts("a, b,,") == ("a", "b")
    assert read_texts(["a", "b,c"]) == ("a", "b", "c")


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "octavo.yaml"
    file.write_text("port: 1\nmax_num_seqs: 2\nctx-size: 3k\nstep-time: 50ms\n")
    env = {"OCTAVO_ARG_PORT": "10", "OCTAVO_ARG_MAX_NUM_SEQS": "20", "OCTAVO_ARG_CONFIG": str(file)}
    made = resolve({"port": "100"}, env)
    assert made.server.port == 100
    assert made.engine.max_num_seqs == 20
    assert made.engine.max_model_len == 3_000  # by another server's name
    assert made.engine.step_time == 50.0
    assert made.engine.block_size == 16
    assert made.sources["port"] == "--port"
    assert made.sources["max_num_seqs"] == "OCTAVO_ARG_MAX_NUM_SEQS"
    assert str(file) in made.sources["max_model_len"]


@pytest.mark.parametrize("auto", ["auto", "AUTO", "-1", -1, None, "0"])
def test_auto(auto: object) -> None:
    assert resolve({"max_model_len": auto}, {}).engine.max_model_len is None


def test_a_top_k_of_zero_is_not_auto() -> None:
    assert resolve({"top_k": "0"}, {}).text.top_k == 0


@pytest.mark.parametrize("name", [each.name for each in all_options()])
def test_every_option_is_set_by_its_variable(name: str, tmp_path: Path) -> None:
    """Each OCTAVO_ARG_<FLAG> reaches its field, and its wrong value is told with the name of the variable."""
    each = next(option for option in all_options() if option.name == name)
    tried = {"": "true", "N": "32", "X": "0.5", "BYTES": "64MiB", "SECONDS": "5", "MS": "7", "JSON": '{"top_k": 3}'}
    text = tried.get(each.kind.metavar, "a")
    if "|" in each.kind.metavar and name not in ("chat_template", "generation_config"):
        text = each.kind.metavar.split("|")[-1]
    if name == "config":
        text = str(tmp_path / "c.yaml")
        Path(text).write_text("")
    made = resolve({}, {"OCTAVO_ARG_" + name.upper(): text})
    assert made.value(name) == each.kind.parse(text)
    assert made.sources == {name: "OCTAVO_ARG_" + name.upper()}


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        ({"port": "70000"}, {}, ["--port", "0 to 65535", "70000"]),
        ({}, {"OCTAVO_ARG_PORT": "tcp://10.0.0.1:80"}, ["--port", "OCTAVO_ARG_PORT", "tcp://10.0.0.1:80"]),
        ({"kv_cache_dtype": "fp8"}, {}, ["--kv-cache-dtype", "int8", "fp16", "fp8"]),
        ({"block_size": "48"}, {}, ["--block-size", "16, 32 or 64", "48"]),
        ({"gpu_memory_utilization": "nan"}, {}, ["--gpu-memory-utilization", "nan"]),
        ({"offline": "maybe"}, {}, ["--offline", "true or false"]),
        ({"max_num_seq": 3}, {}, ["max_num_seq", "max_num_seqs"]),
        ({"override_generation_config": "[1]"}, {}, ["--override-generation-config", "JSON object"]),
        ({"step_time": "0"}, {}, ["--step-time", "milliseconds"]),
        ({"max_num_seqs": True}, {}, ["--max-num-seqs", "whole number"]),
    ],
)
def test_wrong_values(flags: dict, env: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(flags, env)
    assert caught.value.exit_code == 2
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("max-model-length: 3\n", ["max-model-length", "Did you mean", "max-model-len"]),
        ("- a\n", ["mapping"]),
        ("a: [\n", ["--config"]),
        ("port: x\n", ["--port", "octavo.yaml: port", "'x'"]),
    ],
)
def test_wrong_files(content: str, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "octavo.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        resolve({"config": str(file)}, {})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no.yaml"):
        resolve({"config": str(tmp_path / "no.yaml")}, {})


def test_a_noun_made_by_hand_is_checked_too() -> None:
    assert EngineConfig(max_num_seqs=3).max_num_seqs == 3
    with pytest.raises(ConfigError, match="--max-num-seqs"):
        EngineConfig(max_num_seqs=0)
    with pytest.raises(ConfigError, match="typed"):
        EngineConfig(max_model_len="32k")  # type: ignore[arg-type]


def test_the_engine_config_crosses_the_wire() -> None:
    config = resolve({"max_model_len": "4K", "isa": "avx2"}, {}).engine
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=EngineConfig) == config
    with pytest.raises((ConfigError, msgspec.ValidationError)):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"max_num_seqs": -1}), type=EngineConfig)


def test_a_secret_is_not_shown() -> None:
    made = resolve({}, {"OCTAVO_API_KEY": "sk-1,sk-2"})
    assert made.server.api_key == ("sk-1", "sk-2")
    assert "sk-1" not in repr(made)


def test_variables_of_the_hub_and_of_openmp() -> None:
    made = resolve({}, {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "4,2", "OCTAVO_ISA": "portable"})
    assert (made.engine.offline, made.engine.thread_limit, made.engine.isa) == (True, 4, "portable")


def test_notices() -> None:
    env = {
        "VLLM_CPU_KVCACHE_SPACE": "4", "LLAMA_ARG_CTX_SIZE": "1", "OLLAMA_HOST": "x", "OCTAVO_ARG_THREAD": "1",
        "OCTAVO_PORT": "tcp://10.0.0.1:80", "OCTAVO_SERVICE_HOST": "10.0.0.1", "OCTAVO_PORT_80_TCP_ADDR": "x",
    }  # fmt: skip
    notices = resolve({}, env).notices
    assert len(notices) == 4
    assert any("VLLM_CPU_KVCACHE_SPACE" in each and "--kv-cache-memory" in each for each in notices)
    assert any("OCTAVO_ARG_CTX_SIZE" in each for each in notices)
    assert any("OCTAVO_ARG_THREAD " in each and "OCTAVO_ARG_THREADS?" in each for each in notices)


@pytest.mark.parametrize(
    ("word", "dtype"), [("f16", "fp16"), ("q8_0", "int8"), ("bfloat16", "bf16"), ("F32", "float32")]
)
def test_a_near_equivalent_is_told(word: str, dtype: str) -> None:
    """llama.cpp's q8_0 is another layout than int8; its other words mean the very same."""
    made = resolve({"kv_cache_dtype": word}, {})
    assert made.engine.kv_cache_dtype == dtype
    told = ("--kv-cache-dtype q8_0: int8, a scale per token and head",)
    assert made.notices == (told if dtype == "int8" else ())


def test_a_kubernetes_service_called_octavo_changes_nothing() -> None:
    assert resolve({}, {"OCTAVO_PORT": "tcp://10.0.0.1:80", "OCTAVO_HOST": "x"}).server == ServerConfig()


def test_names_are_unique() -> None:
    names = [name for each in all_options() for name in (each.flag, *each.aliases, *each.negations)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"--?[a-z][a-z0-9-]*", name) for name in names)
    assert len(all_options()) < 80
    assert 20 <= sum(not each.rare for each in all_options()) <= 30


def test_nouns_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig().max_num_seqs = 3  # type: ignore[misc]


def test_hub_cache() -> None:
    assert hub_cache({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}) == Path("/a")
    assert hub_cache({"HF_HOME": "/b"}) == Path("/b/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert hub_cache({}) == Path.home() / ".cache/huggingface/hub"


def test_client_environment() -> None:
    client = client_environment({"OPENAI_BASE_URL": "http://a/v1", "OPENAI_API_KEY": "k", "CI": "true"})
    assert (client.base_url, client.api_key, client.plain) == ("http://a/v1", "k", True)
    assert client_environment({"OPENAI_BASE_URL": ""}).base_url is None
    assert "sk-secret" not in repr(client_environment({"OPENAI_API_KEY": "sk-secret"}))
