"""What lies in octavo's folder and the hub's cache, and what removing a model takes away: it, and nothing else."""

import hashlib
from pathlib import Path

import pytest

from octavo.checkpoints import inventory
from octavo.checkpoints.catalogue import CATALOGUE, DEFAULT
from octavo.checkpoints.hub_cache import RepoCache
from octavo.checkpoints.inventory import listed, plan_removal, unfinished
from octavo.errors import ModelNotFound

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """octavo's folder and the hub's cache, empty."""
    cache, hub = tmp_path / "octavo", tmp_path / "hub"
    (cache / "models").mkdir(parents=True)
    hub.mkdir()
    return cache, hub


def put(hub: Path, repo: str, commit: str, files: dict[str, bytes], revision: str = "main") -> RepoCache:
    """Files of a commit in the hub's cache."""
    made = RepoCache(hub, repo)
    for name, content in files.items():
        etag = hashlib.sha256(content).hexdigest()
        made.blob(etag).parent.mkdir(parents=True, exist_ok=True)
        made.blob(etag).write_bytes(content)
        made.link(commit, name, etag)
    made.remember(revision, commit)
    made.locks.mkdir(parents=True, exist_ok=True)
    return made


def names(cache: Path, hub: Path) -> dict[str, int]:
    return {each.name: each.size for each in listed(cache, hub)}


def everything(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


def test_models_by_name_and_size(places: tuple[Path, Path]) -> None:
    cache, hub = places
    (cache / "models" / "own.gguf").write_bytes(b"x" * 10)
    put(hub, "org/gguf", NEW, {"m-Q4_K_M.gguf": b"4" * 20, "m-q8_0.gguf": b"8" * 30, "mmproj-F16.gguf": b"m"})
    put(hub, "org/parts", NEW, {f"m-BF16-0000{i}-of-00002.gguf": b"%d" % i * 40 for i in (1, 2)})
    put(hub, "org/one", NEW, {"model.gguf": b"1" * 50})
    put(hub, "org/folder", NEW, {"config.json": b"{}", "model.safetensors": b"s" * 60})
    put(hub, "org/nothing", NEW, {"config.json": b"{}"})
    put(hub, "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", NEW, {"qwen2.5-coder-1.5b-instruct-q4_k_m.gguf": b"q" * 70})
    assert names(cache, hub) == {
        str(cache / "models" / "own.gguf"): 10, "org/gguf:Q4_K_M": 20, "org/gguf:q8_0": 30, "org/parts:BF16": 80,
        "org/one:model.gguf": 50, "org/folder": 62, "qwen2.5-coder:1.5b": 70,
    }  # fmt: skip
    (found,) = [each for each in listed(cache, hub) if each.name == "org/gguf:Q4_K_M"]
    assert found.id == hashlib.sha256(b"4" * 20).hexdigest()[:12]
    rest = RepoCache(hub, "org/gguf").blob("0" * 64 + ".incomplete")
    rest.write_bytes(b"")
    assert unfinished(hub) == [rest]


def test_one_of_two_quantizations_goes(places: tuple[Path, Path]) -> None:
    cache, hub = places
    repo = put(hub, "org/gguf", NEW, {"m-Q4_K_M.gguf": b"4" * 20, "m-Q8_0.gguf": b"8" * 30})
    before = everything(cache, hub)
    removal = plan_removal("org/gguf:q4_k_m", cache, hub)
    assert removal.nbytes >= 20 and everything(cache, hub) == before
    removal.carry_out()
    gone = {repo.snapshot(NEW) / "m-Q4_K_M.gguf", repo.blob(hashlib.sha256(b"4" * 20).hexdigest())}
    assert before - everything(cache, hub) == gone and names(cache, hub) == {"org/gguf:Q8_0": 30}
    plan_removal("org/gguf:Q8_0", cache, hub).carry_out()
    assert everything(cache, hub) == {cache / "models", hub / ".locks"}  # with its last model the repository


def test_a_blob_that_another_revision_needs_stays(places: tuple[Path, Path]) -> None:
    cache, hub = places
    shared, other = b"same" * 10, b"other" * 10
    put(hub, "org/folder", OLD, {"config.json": b"{}", "model.safetensors": shared}, revision="v1")
    put(hub, "org/folder", NEW, {"config.json": b"{}", "model.safetensors": shared, "x.json": other})
    repo = RepoCache(hub, "org/folder")
    plan_removal("org/folder@main", cache, hub).carry_out()
    assert not repo.snapshot(NEW).exists() and not repo.blob(hashlib.sha256(other).hexdigest()).exists()
    assert (repo.snapshot(OLD) / "model.safetensors").read_bytes() == shared
    assert repo.commit_of("v1") == OLD and repo.commit_of("main") is None
    plan_removal("hf.co/org/folder", cache, hub).carry_out()
    assert not repo.root.exists() and not repo.locks.exists()


def test_a_path_of_the_list_is_a_name(places: tuple[Path, Path]) -> None:
    cache, hub = places
    put(hub, "org/gguf", NEW, {"m-Q4_K_M.gguf": b"4" * 20, "sub/m-Q8_0.gguf": b"8" * 30})
    (cache / "models" / "own.gguf").write_bytes(b"x" * 10)
    for each in listed(cache, hub):
        plan_removal(each.path, cache, hub).carry_out()
    assert names(cache, hub) == {}


def test_a_link_goes_and_not_what_it_points_to(places: tuple[Path, Path], tmp_path: Path) -> None:
    cache, hub = places
    precious = tmp_path / "precious.gguf"
    precious.write_bytes(b"x")
    (cache / "models" / CATALOGUE[DEFAULT].file).symlink_to(precious)
    plan_removal("smollm2", cache, hub).carry_out()
    snapshot = RepoCache(hub, "org/gguf").snapshot(NEW)
    snapshot.mkdir(parents=True)
    (snapshot / "m-Q8_0.gguf").symlink_to(precious)
    (snapshot / "m-Q4_0.gguf").write_bytes(b"y")
    plan_removal("org/gguf:Q8_0", cache, hub).carry_out()
    assert precious.exists() and [each.name for each in snapshot.iterdir()] == ["m-Q4_0.gguf"]


def test_nothing_outside_is_removed(places: tuple[Path, Path], tmp_path: Path) -> None:
    cache, hub = places
    outside = tmp_path / "mine" / "model.gguf"
    outside.parent.mkdir()
    outside.write_bytes(b"x")
    repo = put(hub, "org/gguf", NEW, {"m-Q8_0.gguf": b"8"})
    blob = next((repo.root / "blobs").iterdir())
    for path in (outside, outside.parent, tmp_path, cache, cache / "models", hub, blob, repo.root,
                 cache / "models" / ".." / ".." / "mine" / "model.gguf",
                 repo.snapshot(NEW) / ".." / ".." / ".." / ".." / "mine"):  # fmt: skip
        with pytest.raises(ModelNotFound, match="is neither in .*/models nor in the hub's cache"):
            plan_removal(str(path), cache, hub)
    assert outside.exists()


@pytest.mark.parametrize(
    "name", ["smollm2:135m", "qwen2.5-coder:1.5b", "org/gguf", "org/gguf:Q8_0", "org/gguf@v1", "x"]
)
def test_what_is_not_here_is_told(places: tuple[Path, Path], name: str) -> None:
    with pytest.raises(ModelNotFound, match="octavo list"):
        plan_removal(name, *places)


def test_tags() -> None:
    for name, tag in (("a-Q4_K_M", "Q4_K_M"), ("a.q8_0", "q8_0"), ("a-UD-IQ2_XXS", "UD-IQ2_XXS"), ("b/MXFP4", "MXFP4")):
        found = inventory.QUANTIZATION.search(name)
        assert found and found[1] == tag
    assert not inventory.QUANTIZATION.search("a-instruct")
