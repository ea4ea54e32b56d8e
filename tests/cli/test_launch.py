"""`octavo launch`: what clients are told is written beside the user's own, and taken back to the byte."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from pathlib import Path

import pytest
import yaml

from octavo.cli.launch_clients import CLIENTS, Target
from octavo.cli.launch_files import File, Ledger
from octavo.errors import OctavoError
from octavo.settings import client_folders
from tests.cli.command_line import Serving, octavo

TARGET = Target("http://127.0.0.1:8000", 'a/b"c:1', 32768, "none", client_folders({"HOME": "/nowhere"}))


def launch(home: Path, serving: Serving, user: Path, *args: str, **more: str) -> tuple[int, str, str]:
    """With a home of the user's own."""
    own = {"HOME": str(user), "XDG_CONFIG_HOME": str(user / ".config"), **more}
    found = octavo(home, "launch", "--url", serving.url, *args, **own)
    return found.returncode, found.stdout, found.stderr


def tree(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def program(folder: Path, name: str) -> str:
    """A PATH on which `name` prints its arguments and what it was told."""
    folder.mkdir(exist_ok=True)
    made = folder / name
    made.write_text('#!/bin/sh\necho "$0" "$@"\nenv | sort\n')
    made.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_the_list_of_clients(home: Path) -> None:
    out = octavo(home, "launch").stdout
    assert all(f"octavo launch {name} " in out for name in CLIENTS)
    wrong = octavo(home, "launch", "codx")
    assert wrong.returncode == 2 and "Did you mean codex?" in wrong.stderr


@pytest.mark.parametrize("name", CLIENTS)
def test_printing_writes_nothing(home: Path, serving: Serving, tmp_path: Path, name: str) -> None:
    code, out, said = launch(home, serving, tmp_path, name, "--print")
    assert code == 0 and serving.url in out and not tree(tmp_path), said
    assert name == "open-webui" or "smollm2:135m" in out  # which asks for the list itself


@pytest.mark.parametrize("name", CLIENTS)
def test_files_are_what_their_readers_take(name: str) -> None:
    for key in ("none", "sk-1"):
        setup = CLIENTS[name].make(Target(**{**TARGET.__dict__, "key": key}))
        for file in setup.files:
            if file.path.suffix == ".toml":
                made = tomllib.loads(file.text)
                assert made["model"] == TARGET.model
                assert made["model_providers"]["octavo"]["base_url"] == "http://127.0.0.1:8000/v1"
                assert ("env_key" in made["model_providers"]["octavo"]) is (key != "none")
            elif file.path.suffix == ".json":
                assert TARGET.model in json.dumps(json.loads(file.text), ensure_ascii=False).replace('\\"', '"')
            else:
                assert TARGET.model in str(yaml.safe_load(file.text))
            assert "sk-1" not in file.text or name in ("continue", "pi")  # which can read no variable


def test_a_client_starts_with_what_it_needs(home: Path, serving: Serving, tmp_path: Path) -> None:
    user = tmp_path / "user"
    (user / ".codex").mkdir(parents=True)
    (user / ".codex" / "config.toml").write_text('model = "own"\n')
    before = tree(user)
    path = program(tmp_path / "bin", "codex")
    more = {"PATH": path, "OPENAI_API_KEY": "sk-own"}
    code, out, said = launch(home, serving, user, "codex", "exec", "--json", "-m", "x y", **more)
    assert code == 0, said
    first, *variables = out.splitlines()
    assert first.endswith("codex --profile octavo exec --json -m x y")  # options behind the name are its own
    assert "OCTAVO_API_KEY=sk-own" in variables
    profile = user / ".codex" / "octavo.config.toml"
    assert tomllib.loads(profile.read_text())["model_providers"]["octavo"]["base_url"] == f"{serving.url}/v1"
    assert str(profile) in said and "coding agents send more" in said
    assert launch(home, serving, user, "codex", **more)[0] == 0  # again, over its own file
    assert launch(home, serving, user, "codex", "--restore")[0] == 0
    assert tree(user) == before
    assert "nothing was written" in launch(home, serving, user, "codex", "--restore")[2]


def test_a_client_that_is_not_installed_writes_nothing(home: Path, serving: Serving, tmp_path: Path) -> None:
    code, _, said = launch(home, serving, tmp_path, "opencode")
    assert code == 1 and "npm install -g opencode-ai" in said and not tree(tmp_path)
    code, out, _ = launch(home, serving, tmp_path, "opencode", "--config-only")
    assert code == 0 and f"export OPENCODE_CONFIG={tmp_path}" in out and len(tree(tmp_path)) == 1
    (file,) = tmp_path.rglob("octavo.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600  # it may hold a key
    assert launch(home, serving, tmp_path, "opencode", "--restore")[0] == 0 and not tree(tmp_path)


def test_variables_for_a_shell(home: Path, serving: Serving, tmp_path: Path) -> None:
    code, out, _ = launch(home, serving, tmp_path, "env")
    assert code == 0 and f"export OPENAI_BASE_URL={serving.url}/v1\n" in out and f"OLLAMA_HOST={serving.url}\n" in out
    gone = octavo(home, "launch", "env", "--url", "http://127.0.0.1:9")
    assert gone.returncode == 1 and "octavo serve MODEL" in gone.stderr
    other = launch(home, serving, tmp_path, "env", "--model", "absent")
    assert other[0] == 2 and "not absent" in other[2]


# -- files that are shared ---------------------------------------------------------------------------------------------


def entry(path: Path, text: str, shared: str | None) -> File:
    return File(path, text, shared)


@pytest.mark.parametrize(
    ("name", "shared", "own"),
    [
        ("models.json", "providers.octavo", b'{"providers": {"mine": {"a": 1}},\n "x": [1,2]}'),
        ("models.json", "providers.octavo", b"{}"),
        ("list.yaml", "yaml", b"# mine\n- model_id: a\n  x: 1"),
        ("list.yaml", "yaml", b""),
    ],
)
def test_an_entry_goes_in_and_out(tmp_path: Path, name: str, shared: str, own: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(own)
    path.chmod(0o640)
    text = '{"b": 2}\n' if shared != "yaml" else "- model_id: octavo\n"
    ledger = Ledger(tmp_path / "state", "c")
    ledger.write([entry(path, text, shared)])
    ledger.write([entry(path, text.replace("2", "3"), shared)])  # a second time: still one entry
    made = json.loads(path.read_text()) if shared != "yaml" else yaml.safe_load(path.read_text())
    if shared == "yaml":
        assert [each["model_id"] for each in made] == (["a"] if own else []) + ["octavo"]
    else:
        assert made["providers"]["octavo"] == {"b": 3} and made.get("x") == json.loads(own).get("x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert ledger.restore(lambda line: None) == 1 and path.read_bytes() == own
    ledger.write([entry(path, text, shared)])
    changed = path.read_bytes()
    path.write_bytes(changed + b"- model_id: z\n" if shared == "yaml" else changed.replace(b'"x"', b'"y"') + b"\n")
    ledger.restore(lambda line: None)  # it has changed since: what the user did stays
    left = json.loads(path.read_text()) if shared != "yaml" else yaml.safe_load(path.read_text())
    assert "octavo" not in str(left)
    if shared == "yaml":
        assert left[-1] == {"model_id": "z"}


def test_what_is_the_users_is_never_written_over(tmp_path: Path) -> None:
    state, said = tmp_path / "state", []
    for name, own, shared in (
        ("own.toml", b"mine", None), ("a.json", b"// mine\n{}", "providers.octavo"), ("b.json", b"[]", "providers.o"),
        ("c.json", b'{"providers": 3}', "providers.octavo"), ("d.yaml", b"  - indented: 1\n", "yaml"),
        ("e.yaml", b"key: value\n", "yaml"), ("f.json", b"\xff\xfe", "providers.octavo"),
    ):  # fmt: skip
        path = tmp_path / name
        path.write_bytes(own)
        text = "- model_id: octavo\n" if shared == "yaml" else "{}"
        fresh = tmp_path / "fresh.toml"
        with pytest.raises(OctavoError, match=r"nothing was changed|not octavo's"):
            Ledger(state, "c").write([entry(fresh, "x", None), entry(path, text, shared)])
        assert path.read_bytes() == own and not fresh.exists()  # all or nothing
    ledger = Ledger(state, "c")
    ledger.write([entry(tmp_path / "fresh.toml", "ours", None)])
    (tmp_path / "fresh.toml").write_text("edited")
    ledger.restore(said.append)
    assert (tmp_path / "fresh.toml").read_text() == "edited" and "by hand" in said[0]
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "real.json")
    (tmp_path / "real.json").write_text("{}")
    ledger.write([entry(link, "1", "octavo")])
    assert link.is_symlink() and json.loads((tmp_path / "real.json").read_text()) == {"octavo": 1}
