"""The file of --api-key-file: one key a line, as itself or as a name, a hash and what the key may do.

    alice sha256:9f86d0… weight=3 concurrent=8 tokens-per-minute=60k tokens-per-day=1m deadline=60s
    ops   sha256:60303a… admin
    sk-a-key-as-it-is

A hash is SHA-256 without salt: `octavo key` makes keys of 256 random bits, which nobody finds by trying. It knows no
call and compares nothing.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError
from octavo.option import Kind, count, milliseconds, number
from octavo.server.tenants import Tenant

MAX_KEYS = 10_000  # every call is compared with each of them: 0.1 us a key
PREFIX = "sk-oct-"
DAY_MS = 86_400_000.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
# What may stand behind a hash -> the field of Tenant, and how it is written; None: a word alone.
OPTIONS: dict[str, tuple[str, Kind | None]] = {
    "weight": ("weight", number(0.01, 1000)),
    "concurrent": ("concurrent", count(1)),
    "tokens-per-minute": ("tokens_per_minute", count(1)),
    "tokens-per-day": ("tokens_per_day", count(1)),
    "priority": ("priority", count(-1000, 1000)),
    "deadline": ("deadline_ms", milliseconds(1, DAY_MS)),
    "share-prefix-cache": ("shares_cache", None),
    "admin": ("admin", None),
}


def digest(key: bytes) -> bytes:
    """What is kept and compared."""
    return hashlib.sha256(key).digest()


def nameless(key: str, *, admin: bool = False, priority: int | None = None) -> tuple[bytes, Tenant]:
    """A key that was given as itself: its digest, and a tenant that is named after that."""
    made = digest(key.encode())
    return made, Tenant(f"key-{made.hex()[:12]}", admin, priority=priority)


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def key_line(name: str, key: str, options: list[str]) -> str:
    """The line of a key. ConfigError names what is wrong with the name or an option."""
    line = " ".join([name, f"sha256:{digest(key.encode()).hex()}", *options])
    _entry(line.split(), "the line")
    return line


def read_file(path: Path) -> list[tuple[bytes, Tenant]]:
    """Digests and tenants of a file. ConfigError names the file and the line, never a key."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {path}: {error}.", flag="--api-key-file") from None
    found: list[tuple[bytes, Tenant]] = []
    names: dict[str, int] = {}
    known: dict[bytes, int] = {}
    for number_, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"--api-key-file {path}, line {number_}"
        made, tenant = nameless(words[0], priority=0) if len(words) == 1 else _entry(words, where)
        for what, before in (("name", names.get(tenant.name)), ("key", known.get(made))):
            if before is not None:
                raise _wrong(where, f"the {what} stands in line {before} already")
        names[tenant.name] = known[made] = number_
        found.append((made, tenant))
    if len(found) > MAX_KEYS:
        raise _wrong(f"--api-key-file {path}", f"it has {len(found):,} keys; at most {MAX_KEYS:,} are accepted")
    return found


def _entry(words: list[str], where: str) -> tuple[bytes, Tenant]:
    name, hashed, *options = words
    if not NAME.fullmatch(name):
        raise _wrong(where, "a name has 1 to 64 letters, digits, '.', '_', '@' and '-'")
    right = _HASH.fullmatch(hashed)
    if right is None:
        raise _wrong(where, f"after the name {name} comes sha256: and 64 hexadecimal digits; `octavo key {name}` does")
    given: dict[str, Any] = {}
    for option in options:
        word, equals, value = option.partition("=")
        if word not in OPTIONS:
            raise _wrong(where, f"{word[:40]!r} is none of {', '.join(OPTIONS)}")
        field, kind = OPTIONS[word]
        if field in given:
            raise _wrong(where, f"{word} is given twice")
        given[field] = _value(word, bool(equals), value, kind, where)
    if not given.get("admin"):
        given.setdefault("priority", 0)
    return bytes.fromhex(right[1]), replace(Tenant(name), **given)


def _value(word: str, equals: bool, value: str, kind: Kind | None, where: str) -> object:
    if kind is None:
        if equals:
            raise _wrong(where, f"{word} takes no value")
        return True
    try:
        return kind.parse(value)
    except (ValueError, ArithmeticError):
        raise _wrong(where, f"{word}: expected {kind.expects}, got {value[:40]!r}") from None


def _wrong(where: str, what: str) -> ConfigError:
    return ConfigError(f"{where}: {what}.", flag="--api-key-file")
