"""Downloads from a hub that answers over real HTTP, through the hub's own library: whole, broken, refused, twice."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from octavo.checkpoints import transfer
from octavo.checkpoints.digest import file_digest
from octavo.checkpoints.sources import ModelFiles, resolve
from octavo.errors import CheckpointError, ModelNotFound, OctavoError, UnsupportedModel
from tests.checkpoints.hub_server import Hub, Repo, running

WEIGHTS = {f"m-{name}.gguf": os.urandom(3_000_000) for name in ("Q4_K_M", "Q8_0")}
Q4 = WEIGHTS["m-Q4_K_M.gguf"]
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
FOLDER = {
    "config.json": b"{}", "tokenizer.json": b"{}", "README.md": b"# name",
    "additional_chat_templates/rag.jinja": b"{{ messages }}",
    "model.safetensors.index.json": INDEX.encode(),
    "model-00001-of-00002.safetensors": b"one" * 1000, "model-00002-of-00002.safetensors": b"two" * 1000,
}  # fmt: skip
NOT_WANTED = {
    "consolidated.safetensors": b"x", "original/model.safetensors": b"x", "pytorch_model.bin": b"x",
    "modeling.py": b"import os", "onnx/model.onnx": b"x",
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/no/such/token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transfer, "BACKOFF_SECONDS", 0.01)
    with running() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + template[template.index("/{repo_id}") :]
        )
        made.repos["org/gguf"] = Repo(dict(WEIGHTS))
        made.repos["org/folder"] = Repo({**FOLDER, **NOT_WANTED})
        yield made
        huggingface_hub.close_session()


Get = Callable[..., ModelFiles]


@pytest.fixture
def get(tmp_path: Path, hub: Hub) -> Get:
    def fetch(name: str, **options: object) -> ModelFiles:
        return resolve(name, cache_dir=tmp_path / "octavo", hub_cache=tmp_path / "hub", **options)  # type: ignore[arg-type]

    return fetch


def test_a_quantization_is_fetched_once(hub: Hub, get: Get, tmp_path: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    found = get("org/gguf:Q4_K_M", progress=lambda *report: stages.append(report))
    assert found.path.read_bytes() == Q4 and found.source == "hub"
    assert found.names == ("org/gguf:Q4_K_M", "org/gguf", "m-Q4_K_M")
    assert stages[0] == ("download", 0, len(Q4)) and stages[-1] == ("download", len(Q4), len(Q4))
    assert hub.downloads() == {"gguf!m-Q4_K_M.gguf": 1}
    hub.seen.clear()
    for name in ("org/gguf:q4_k_m", "org/gguf", "hf.co/org/gguf:latest", "org/gguf@main", "org/gguf:m-Q4_K_M.gguf"):
        assert get(name).path == found.path == get(name, offline=True).path
    assert not hub.seen
    digest = hashlib.sha256(Q4).hexdigest()
    (note,) = (tmp_path / "octavo" / "digests").iterdir()
    assert note.read_text() == digest == file_digest(found.path, tmp_path / "octavo")


def test_the_cache_is_the_hubs_own(hub: Hub, get: Get, tmp_path: Path) -> None:
    """What we fetched the hub's library finds, and the other way round."""
    ours = get("org/gguf:Q4_K_M").path
    theirs = huggingface_hub.hf_hub_download(
        "org/gguf", "m-Q4_K_M.gguf", cache_dir=tmp_path / "hub", local_files_only=True
    )
    assert Path(theirs) == ours
    (repo,) = huggingface_hub.scan_cache_dir(tmp_path / "hub").repos
    assert repo.repo_id == "org/gguf" and not huggingface_hub.scan_cache_dir(tmp_path / "hub").warnings
    brought = huggingface_hub.hf_hub_download("org/gguf", "m-Q8_0.gguf", cache_dir=tmp_path / "hub")
    hub.seen.clear()
    assert get("org/gguf:Q8_0").path == Path(brought) and not hub.seen


def test_a_folder_gets_what_is_read_and_no_code(hub: Hub, get: Get) -> None:
    found = get("org/folder").path
    files = (each for each in found.rglob("*") if each.is_file())
    assert {str(each.relative_to(found)): each.read_bytes() for each in files} == FOLDER
    assert set(hub.downloads()) == {f"folder!model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    hub.seen.clear()
    assert get("org/folder").path == found and not hub.seen


def test_parts_of_a_model_come_together(hub: Hub, get: Get) -> None:
    names = [f"Q8_0/m-Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    hub.repos["org/parts"] = Repo({name: name.encode() for name in names} | {"mmproj-F16.gguf": b"x"})
    found = get("org/parts:Q8_0").path
    assert found.name == "m-Q8_0-00001-of-00003.gguf"
    assert sorted(f"Q8_0/{each.name}" for each in found.parent.iterdir()) == names
    found.with_name("m-Q8_0-00003-of-00003.gguf").unlink()
    hub.seen.clear()
    assert get("org/parts:Q8_0").path == found
    assert len(hub.seen) == 1  # the listing: the blob is there


def test_a_revision_is_fetched_whole_and_alone(hub: Hub, get: Get, tmp_path: Path) -> None:
    get("org/gguf:Q4_K_M")
    hub.repos["org/gguf"] = Repo({"m-Q4_K_M.gguf": b"new"}, commit="d" * 40, revisions=("main", "refs/pr/3"))
    assert get("org/gguf:Q4_K_M").path.read_bytes() == Q4  # main as it was when it was fetched
    hub.seen.clear()
    found = get("org/gguf:Q4_K_M@refs/pr/3").path
    assert found.read_bytes() == b"new" and found.parent.name == "d" * 40
    assert [path for path in hub.asked("hub") if "resolve" in path] == [f"/org/gguf/resolve/{'d' * 40}/m-Q4_K_M.gguf"]
    assert get("org/gguf:Q4_K_M", revision="d" * 40, offline=True).path == found
    with pytest.raises(ModelNotFound, match="org/gguf has no revision 'v9'"):
        get("org/gguf@v9")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_taken_up_again(hub: Hub, get: Get, ranges: bool) -> None:
    hub.cut["m-Q4_K_M.gguf"] = [1_500_000, 700_000]
    hub.no_ranges = not ranges
    assert get("org/gguf:Q4_K_M").path.read_bytes() == Q4
    asked = [each.range for each in hub.seen if each.where == "cdn"]
    assert len(asked) == 3 and asked[0] is None
    if ranges:
        assert asked[1:] == ["bytes=1500000-", "bytes=2200000-"]


def test_a_download_goes_on_in_the_next_process(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.cut["m-Q4_K_M.gguf"] = [2_000_000] + [0] * 20
    with pytest.raises(ModelNotFound, match="hub could not be asked at http://127.*: .*peer closed"):
        get("org/gguf:Q4_K_M")
    blobs = tmp_path / "hub" / "models--org--gguf" / "blobs"
    (partial,) = blobs.iterdir()
    assert partial.name == f"{hashlib.sha256(Q4).hexdigest()}.incomplete" and partial.stat().st_size == 2_000_000
    with pytest.raises(ModelNotFound, match="not whole"):
        get("org/gguf:Q4_K_M", offline=True)
    hub.cut.clear()
    hub.seen.clear()
    shown: list[int] = []
    assert get("org/gguf:Q4_K_M", progress=lambda _, done, total: shown.append(done)).path.read_bytes() == Q4
    assert [each.range for each in hub.seen if each.where == "cdn"] == ["bytes=2000000-"]
    assert sorted(set(shown))[:2] == [0, 2_000_000] and [each.name for each in blobs.iterdir()] == [partial.stem]


def test_a_spoilt_rest_is_thrown_away(hub: Hub, get: Get, tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "models--org--gguf" / "blobs"
    blobs.mkdir(parents=True)
    for rest in (b"\0" * 1000, b"\0" * len(Q4), b"\0" * (len(Q4) + 1)):
        shutil.rmtree(blobs.parent)
        blobs.mkdir(parents=True)
        (blobs / f"{hashlib.sha256(Q4).hexdigest()}.incomplete").write_bytes(rest)
        assert get("org/gguf:Q4_K_M").path.read_bytes() == Q4


@pytest.mark.parametrize("content", [b"\xff" + Q4[1:], Q4 + b"x", Q4[:-1]])
def test_wrong_bytes_are_not_kept(hub: Hub, get: Get, tmp_path: Path, content: bytes) -> None:
    hub.repos["org/gguf"] = Repo({"m-Q4_K_M.gguf": content}, stated={"m-Q4_K_M.gguf": Q4})
    with pytest.raises(OctavoError) as caught:
        get("org/gguf:Q4_K_M")
    told = {
        -1: "the hub ends its answers before the end of m-Q4_K_M",
        0: "m-Q4_K_M.gguf of org/gguf arrived with sha256",
    }
    assert told.get(len(content) - len(Q4), "the hub sends more than 3,000,000 bytes for m-Q4_K_M") in str(caught.value)
    if len(content) == len(Q4):
        assert isinstance(caught.value, CheckpointError)
        assert not list((tmp_path / "hub" / "models--org--gguf" / "blobs").iterdir())
    assert not (tmp_path / "hub" / "models--org--gguf" / "snapshots").exists()


def test_small_files_are_verified_by_gits_digest(hub: Hub, get: Get) -> None:
    hub.repos["org/folder"] = Repo({**FOLDER, "config.json": b"[]"}, stated={"config.json": b"{}"})
    with pytest.raises(CheckpointError, match="config.json of org/folder arrived with git sha1"):
        get("org/folder")


def test_the_token_goes_to_the_hub_alone(hub: Hub, get: Get, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.repos["org/gguf"].gated, hub.repos["org/gguf"].token = True, "secret"
    with pytest.raises(
        ModelNotFound, match="needs a token for org/gguf .gated.. Accept its terms at .*/org/gguf, then"
    ):
        get("org/gguf")
    monkeypatch.setenv("HF_TOKEN", "other")
    with pytest.raises(ModelNotFound, match="the hub's token has no access to org/gguf .gated."):
        get("org/gguf")
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    hub.seen.clear()
    assert get("org/gguf").path.read_bytes() == Q4
    assert {each.token for each in hub.seen if each.where == "hub"} == {"secret"}
    assert {each.token for each in hub.seen if each.where == "cdn"} == {None}


@pytest.mark.parametrize(
    "token, told",
    [
        (None, "has no model org/private .if it is private, set HF_TOKEN."),
        ("other", "has no model org/private .the token cannot see it."),
        ("unknown", "has no model org/private|does not know the token"),
    ],
)
def test_private_and_missing_repositories(
    hub: Hub, get: Get, monkeypatch: pytest.MonkeyPatch, token: str | None, told: str
) -> None:
    hub.repos["org/private"] = Repo({"m.gguf": b"x"}, private=True, token="secret")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelNotFound, match=told):
        get("org/private")


def test_an_unknown_token_is_told(hub: Hub, get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "unknown")
    with pytest.raises(ModelNotFound, match="the hub does not know the token: check HF_TOKEN"):
        get("org/gguf")


@pytest.mark.parametrize("where", ["hub", "cdn"])
def test_rate_limits_and_failures_are_waited_for(hub: Hub, get: Get, where: str) -> None:
    hub.busy = [(where, 429, 0.05), (where, 503, 0)]
    assert get("org/gguf:Q4_K_M").path.read_bytes() == Q4
    assert not hub.busy


@pytest.mark.parametrize(
    "status, seconds, told",
    [
        (429, 3600, "the hub limits requests: try again in 3600 s, or set HF_TOKEN for a higher limit"),
        (
            503,
            0,
            "the hub at http://127.* is out of order .status 503.: try again later, or set HF_ENDPOINT to a mirror",
        ),
    ],
)
@pytest.mark.parametrize("where", ["hub", "cdn"])
def test_long_limits_and_lasting_failures_are_told(
    hub: Hub, get: Get, where: str, status: int, seconds: float, told: str
) -> None:
    hub.busy = [(where, status, seconds)] * 10
    with pytest.raises(ModelNotFound, match=told):
        get("org/gguf:Q4_K_M")


def test_a_full_disk_is_told_before_the_start(hub: Hub, get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: usage._replace(free=50_000_000))
    with pytest.raises(
        ModelNotFound, match="needs 0.00 GB more on the disk of .*, which has 0.05 GB free. Nothing was"
    ):
        get("org/gguf:Q4_K_M")
    assert not hub.asked("cdn")


def test_an_interrupt_ends_all_downloads(hub: Hub, get: Get) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get("org/folder", progress=interrupt)


@pytest.mark.parametrize(
    "name, files, error, told",
    [
        ("org/x:Q2_K", WEIGHTS, ModelNotFound, "org/x has no Q2_K file; it has: m-Q4_K_M.gguf, m-Q8_0.gguf"),
        ("org/x:Q2_K", FOLDER, ModelNotFound, "org/x has no GGUF files, so there is no Q2_K of it"),
        (
            "org/x",
            {"pytorch_model.bin": b"", "config.json": b""},
            UnsupportedModel,
            "only pickled weights .pytorch_model",
        ),
        ("org/x", {"adapter_config.json": b"", "adapter_model.safetensors": b""}, UnsupportedModel, "LoRA adapter"),
        ("org/x", {"model_index.json": b"", "unet/m.safetensors": b""}, UnsupportedModel, "image or video model"),
        ("org/x", {"README.md": b""}, ModelNotFound, "neither safetensors weights nor GGUF files"),
        ("org/x", {"m-00001-of-00002.gguf": b"x"}, ModelNotFound, "lacks m-00002-of-00002.gguf"),
    ],
)
def test_repositories_without_a_model(
    hub: Hub, get: Get, name: str, files: dict[str, bytes], error: type[Exception], told: str
) -> None:
    hub.repos["org/x"] = Repo(dict(files))
    with pytest.raises(error, match=told):
        get(name)
    assert not hub.asked("cdn")


CHILD = """
import sys
from octavo.cli.main import main
main(sys.argv[1:])
"""


def child(hub: Hub, folder: Path, *args: str, **more: str) -> subprocess.Popen[str]:
    """`octavo ARGS` with everything in `folder` and HF_ENDPOINT on the small hub."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "OCTAVO_")) and "proxy" not in k.lower()}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "OCTAVO_CACHE": str(folder / "octavo"), **more}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *args],
        env={**kept, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_download_once_through_a_mirror(hub: Hub, tmp_path: Path) -> None:
    hub.hold.clear()
    children = [child(hub, tmp_path, "pull", "org/gguf:Q8_0") for _ in range(2)]
    while len(hub.asked("hub")) < 3:  # both listings and one file
        assert all(each.poll() is None for each in children)
        time.sleep(0.01)
    hub.hold.set()
    said = [each.communicate(timeout=60) for each in children]
    expected = tmp_path / "hf" / "hub" / "models--org--gguf" / "snapshots" / ("c" * 40) / "m-Q8_0.gguf"
    assert [out.strip() for out, _ in said] == [str(expected)] * 2, said
    assert hub.downloads() == {"gguf!m-Q8_0.gguf": 1}
    hub.seen.clear()
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        out, _ = child(hub, tmp_path, "pull", "org/gguf:Q8_0", **more).communicate(timeout=60)
        assert out.strip() == str(expected)
    assert not hub.seen
    done = child(hub, tmp_path, "pull", "org/gguf:Q4_K_M", "--download-dir", str(tmp_path / "here"))
    out, _ = done.communicate(timeout=60)
    assert out.startswith(str(tmp_path / "here" / "models--org--gguf"))
    refused = child(hub, tmp_path, "pull", "org/nothing")
    _, said_last = refused.communicate(timeout=60)
    assert refused.returncode == 3 and "the hub has no model org/nothing" in said_last
