"""`octavo show` and `octavo rm` as people call them."""

import json
from pathlib import Path

import pytest

from octavo import start
from octavo.config import EngineConfig
from octavo.errors import UnsupportedModel
from octavo.execution.packed_file import PackedFile
from tests import real
from tests.checkpoints.test_inventory import NEW, put
from tests.cli.command_line import octavo


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A cache of this test alone, with the default model as a link."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / real.smollm2().name).symlink_to(real.smollm2())
    return tmp_path


def test_show_in_sections_and_as_json(own: Path) -> None:
    page = octavo(own, "show").stdout
    for line in (
        "  Model", "    architecture       llama", "    parameters         134.5M", "    served             yes",
        "  Capabilities", "    completion", '    stop          "<|im_end|>"', "    temperature   0.2", "  License",
        "    apache-2.0",
    ):  # fmt: skip
        assert line in page.splitlines(), page
    found = json.loads(octavo(own, "show", "smollm2", "--json", "--tensors").stdout)
    assert found["context_length"] == 8192 and found["served"] and found["refusal"] is None
    assert found["names"][0] == "smollm2:135m" and len(found["tensors"]) == 272
    assert sum(each["size"] for each in found["formats"]) == found["size"]
    assert octavo(own, "show", "--template").stdout == found["template"] + "\n"


def test_show_tells_what_is_not_served_and_what_is_not_here(own: Path) -> None:
    from tests.checkpoints.test_gguf import write

    found = octavo(own, "show", str(write(own / "m.gguf", arch="mamba")))
    assert found.returncode == 0 and "served             no: architecture 'mamba' is not supported" in found.stdout
    for name in ("org/absent:Q8_0", "qwen2.5-coder:1.5b"):
        found = octavo(own, "show", name)
        assert (
            found.returncode == 3 and f"{name} is not on this machine, or not whole: octavo pull {name}" in found.stderr
        )
    found = octavo(own, "show", "smolm2")
    assert found.returncode == 3 and "Did you mean smollm2" in found.stderr


def test_rm_takes_the_model_and_what_was_made_of_it(own: Path) -> None:
    options = ("--max-model-len", "64", "--kv-cache-memory", "16MiB", "--max-tokens", "1")
    answered = octavo(own, "run", *options, "smollm2", "Hi")
    assert answered.returncode == 0, answered.stderr
    packed = PackedFile.of(own, real.MODELS["smollm2-135m-instruct"].sha256, {}, 4096, 2).path
    packed.parent.mkdir()
    packed.write_bytes(bytes(4096))
    (tokenizer,) = (own / "tokenizer").glob("*/tokenizer.json")
    made = [packed, tokenizer]
    (own / "packed" / f"{'0' * 16}-{'0' * 32}.weights").write_bytes(b"another model's")
    refused = octavo(own, "rm", "smollm2")
    assert refused.returncode == 2 and "to remove it without being asked, add --yes" in refused.stderr
    assert all(path.exists() for path in made)
    done = octavo(own, "rm", "smollm2", "--yes")
    assert done.returncode == 0 and done.stderr.startswith("removed smollm2:135m, ") and done.stdout == ""
    assert not any(path.exists() for path in made) and not list((own / "models").iterdir())
    assert real.smollm2().exists() and len(list((own / "packed").iterdir())) == 1
    assert octavo(own, "rm", "smollm2", "--yes").returncode == 3
    assert octavo(own, "rm", str(real.smollm2()), "--yes").returncode == 3 and real.smollm2().exists()


def test_rm_of_the_hubs_files(own: Path) -> None:
    put(own / "hub", "org/gguf", NEW, {"m-Q4_K_M.gguf": b"4", "m-Q8_0.gguf": b"8"})
    assert octavo(own, "rm", "org/gguf:Q8_0", "-y").returncode == 0
    assert [each["name"] for each in json.loads(octavo(own, "list", "--json").stdout) if "org" in each["name"]] == [
        "org/gguf:Q4_K_M"
    ]


def test_a_family_that_is_not_built_is_told_before_a_download(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "FAMILIES", {"llama": ""})
    monkeypatch.setattr(start, "resolve", None)
    with pytest.raises(UnsupportedModel, match="qwen3:8b is of the family qwen3, which is not built yet"):
        start.find_model(EngineConfig(model="qwen3:8b"))
