"""The file of keys: what a line may be, what is wrong with one, and the command that makes one."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.errors import ConfigError, Unauthorized
from octavo.server.auth import Keys, reload_keys
from octavo.server.key_file import digest, key_line, nameless, new_key, read_file
from octavo.server.tenants import ANYONE, Tenant
from tests.cli.command_line import octavo

HASH = "sha256:" + "0" * 64


def written(folder: Path, *lines: str) -> Path:
    path = folder / "keys"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_lines(tmp_path: Path) -> None:
    options = ["weight=3", "concurrent=8", "tokens-per-minute=60k", "tokens-per-day=1m", "deadline=60s"]
    path = written(
        tmp_path,
        "# who may ask",
        "",
        key_line("alice", "sk-a", options),
        "  " + key_line("ops@example.org", "sk-o", ["admin", "share-prefix-cache"]),
        "sk-plain",
    )
    assert read_file(path) == [
        (digest(b"sk-a"), Tenant("alice", False, 3.0, 8, 60_000, 1_000_000, 60_000.0, priority=0)),
        (digest(b"sk-o"), Tenant("ops@example.org", True, shares_cache=True)),
        (digest(b"sk-plain"), Tenant("key-" + digest(b"sk-plain").hex()[:12], priority=0)),
    ]
    assert "sk-a" not in path.read_text()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([f"a {HASH} weight=0"], "line 1: weight: expected a number from 0.01 to 1000, got '0'"),
        ([f"a {HASH} weight=nan"], "weight"),
        (["# x", f"a {HASH} concurrent=0"], "line 2: concurrent: expected a whole number of at least 1"),
        ([f"a {HASH} deadline=2d"], "deadline"),
        ([f"a {HASH} priority=high"], "priority: expected a whole number from -1000 to 1000"),
        ([f"a {HASH} admin=yes"], "admin takes no value"),
        ([f"a {HASH} weight=1 weight=2"], "weight is given twice"),
        ([f"a {HASH} colour=red"], "'colour' is none of weight, concurrent"),
        (["a secret"], "after the name a comes sha256:"),
        ([f"a/b {HASH}"], "a name has 1 to 64"),
        ([f"a {HASH}", f"a sha256:{'1' * 64}"], "line 2: the name stands in line 1 already"),
        ([f"a {HASH}", f"b {HASH}"], "line 2: the key stands in line 1 already"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, lines: list[str], said: str) -> None:
    path = written(tmp_path, *lines)
    with pytest.raises(ConfigError) as told:
        read_file(path)
    assert said in told.value.message and str(path) in told.value.message
    assert "secret" not in told.value.message and told.value.flag == "--api-key-file"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="--api-key-file"):
            Keys((), str(path))
    (tmp_path / "odd").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="odd"):
        Keys((), str(tmp_path / "odd"))


def test_who_administrates(tmp_path: Path) -> None:
    """The keys of --api-key do, unless there is a key that alone does."""
    path = written(tmp_path, key_line("alice", "sk-a", []))

    def admins(keys: Keys) -> list[bool]:
        return [keys.check({b"x-api-key": sent}).admin for sent in (b"sk-mine", b"sk-a")]

    assert admins(Keys(["sk-mine"], str(path))) == [True, False]
    assert admins(Keys(["sk-mine"], str(path), ["sk-root"])) == [False, False]
    assert Keys(["sk-mine"], None, ["sk-root"]).check({b"x-api-key": b"sk-root"}).admin
    written(tmp_path, key_line("alice", "sk-a", []), key_line("ops", "sk-o", ["admin"]))
    assert admins(Keys(["sk-mine"], str(path))) == [False, False]
    assert Keys((), None).check({}) == ANYONE


def test_a_broken_file_keeps_the_old_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, key_line("alice", "sk-a", ["weight=2"]))
    keys = Keys((), str(path))
    written(tmp_path, key_line("bob", "sk-b", []), "carol what")
    reload_keys(keys)
    assert keys.check({b"x-api-key": b"sk-a"}).weight == 2
    with pytest.raises(Unauthorized):
        keys.check({b"x-api-key": b"sk-b"})
    written(tmp_path, key_line("bob", "sk-b", []))
    reload_keys(keys)
    assert keys.check({b"x-api-key": b"sk-b"}).name == "bob" and keys.named("bob").name == "bob"
    for gone in (lambda: keys.check({b"x-api-key": b"sk-a"}), lambda: keys.named("alice")):
        with pytest.raises(Unauthorized):
            gone()
    assert [tenant.name for tenant in keys.all()] == ["bob"]


def test_the_command(tmp_path: Path) -> None:
    made = octavo(tmp_path, "key", "alice", "weight=3", "admin")
    line, key = made.stdout.strip(), made.stderr.split()[-1]
    assert made.returncode == 0 and len(key) > 40 and key not in line
    (entry,) = read_file(written(tmp_path, line))
    assert entry == (digest(key.encode()), Tenant("alice", True, 3.0))
    wrong = octavo(tmp_path, "key", "alice", "weight=heavy")
    assert wrong.returncode == 2 and "weight: expected a number" in wrong.stderr and not wrong.stdout
    assert new_key() != new_key() and nameless("x")[1].name.startswith("key-")
