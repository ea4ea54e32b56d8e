"""Files of the hub over HTTP into its cache: resumed where they broke off, verified, each by one process only.

The hub's library gives addresses, headers (with the token) and the HTTP client. Its own download (2.4) throws a broken
file away and compares only its size; this one keeps the partial file in the place and under the name that the library
used before, asks for the rest, and compares the digest that names the file: SHA-256 for large files, git's SHA-1 for
small ones. It knows no model.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from octavo.checkpoints.download import Progress, only_one
from octavo.checkpoints.hub_cache import RepoCache
from octavo.errors import CheckpointError, ModelNotFound

T = TypeVar("T")

CONNECT_SECONDS, READ_SECONDS = 3.0, 10.0
ATTEMPTS = 6  # in a row without a byte
QUESTIONS = 3
BACKOFF_SECONDS = 0.5  # doubled with each attempt: 16 s in all
LONGEST_WAIT = 60.0  # of a Retry-After; a hub that wants more is told instead
CHUNK = 1 << 20
AT_ONCE = 4  # files; one connection seldom fills the line
SPARE_DISK = 64 << 20  # left free beside the files


@dataclass(frozen=True)
class HubFile:
    """A file of a commit. etag: 64 hex digits of SHA-256, or 40 of git's SHA-1; it names the blob."""

    name: str
    nbytes: int
    etag: str
    url: str


class Interrupted(Exception):
    """Another file failed, or the user wants to stop."""


class Refused(Exception):
    """The hub answered with an error; `response` is read. wait: seconds after which to ask again, None for never."""

    def __init__(self, response: Any, wait: float | None = None) -> None:
        super().__init__(f"HTTP {response.status_code}")
        self.response, self.wait = response, wait


class Meter:
    """Adds up the bytes of several threads for one bar; stops them."""

    def __init__(self, total: int, report: Progress) -> None:
        self.total, self._report, self._done = total, report, 0
        self._lock = threading.Lock()
        self.stop = threading.Event()

    def add(self, nbytes: int) -> None:
        """Raises Interrupted once `stop` is set."""
        if self.stop.is_set():
            raise Interrupted
        with self._lock:
            self._done += nbytes
            self._report("download", self._done, self.total)

    def sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Interrupted


class Checked:
    """A partial file that is written to its end, with the digest of all that is in it."""

    def __init__(self, path: Path, file: HubFile) -> None:
        self.path, self.file = path, file
        self.have = path.stat().st_size if path.exists() else 0
        if self.have > file.nbytes:
            self._restart()
        else:
            self._digest = self._new()
            if self.have:
                with path.open("rb") as content:
                    while chunk := content.read(CHUNK):
                        self._digest.update(chunk)

    def _new(self) -> Any:
        if len(self.file.etag) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.file.nbytes, usedforsecurity=False)

    def _restart(self) -> None:
        self.path.unlink(missing_ok=True)
        self.have, self._digest = 0, self._new()

    def restart(self, meter: Meter) -> None:
        """Throws away what is there."""
        meter.add(-self.have)
        self._restart()

    def append(self, out: IO[bytes], chunk: bytes, meter: Meter) -> None:
        """Raises CheckpointError where the hub sends more than the file has."""
        if self.have + len(chunk) > self.file.nbytes:
            raise CheckpointError(f"the hub sends more than {self.file.nbytes:,} bytes for {self.file.name}")
        out.write(chunk)
        self._digest.update(chunk)
        self.have += len(chunk)
        meter.add(len(chunk))

    def keep_as(self, blob: Path) -> None:
        """Gives the file its name once its bytes are on the disk."""
        with self.path.open("ab") as out:
            os.fsync(out.fileno())
        os.replace(self.path, blob)

    @property
    def right(self) -> bool:
        return bool(self._digest.hexdigest() == self.file.etag)

    @property
    def found(self) -> str:
        return str(self._digest.hexdigest())


def fetch_all(files: Iterable[HubFile], repo: RepoCache, report: Progress) -> None:
    """Brings all files into the repository's blobs; those that are there are not asked for.

    Raises ModelNotFound before the first byte where the disk is too small, Refused, CheckpointError naming a file whose
    digest is wrong, the HTTP client's errors when a connection stays broken, OSError. Partial files stay for the next
    attempt.
    """
    missing = [file for file in files if not repo.blob(file.etag).exists()]
    if not missing:
        return
    _check_disk(missing, repo)
    meter = Meter(sum(file.nbytes for file in missing), report)
    meter.add(0)
    (repo.root / "blobs").mkdir(parents=True, exist_ok=True)
    repo.locks.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(AT_ONCE, "download") as pool:
        tasks = [pool.submit(_fetch, file, repo, meter) for file in sorted(missing, key=lambda file: -file.nbytes)]
        first: BaseException | None = None
        try:
            for task in tasks:
                task.add_done_callback(lambda done: meter.stop.set() if done.exception() else None)
            for task in tasks:
                error = task.exception()
                first = error if error and (first is None or isinstance(first, Interrupted)) else first
        finally:
            meter.stop.set()  # an interrupt in this thread ends the others
        if first is not None:
            raise first


def _check_disk(missing: list[HubFile], repo: RepoCache) -> None:
    folder = repo.root
    while not folder.exists():
        folder = folder.parent
    partial = [_partial(repo, file) for file in missing]
    need = sum(file.nbytes for file in missing) - sum(path.stat().st_size for path in partial if path.exists())
    free = shutil.disk_usage(folder).free
    if need + SPARE_DISK > free:
        raise ModelNotFound(
            f"{repo.repo} needs {need / 1e9:,.2f} GB more on the disk of {folder}, which has {free / 1e9:,.2f} GB "
            "free. Nothing was downloaded\n"
            "  elsewhere  --download-dir FOLDER on another disk\n"
            "  less       `octavo list` shows what is here, `octavo rm NAME` removes it",
            param="model",
        )


def _partial(repo: RepoCache, file: HubFile) -> Path:
    return repo.blob(f"{file.etag}.incomplete")


def _fetch(file: HubFile, repo: RepoCache, meter: Meter) -> None:
    """One file: alone, whole, verified, then under its name."""
    blob, partial = repo.blob(file.etag), _partial(repo, file)

    def waiting(stage: str, done: int, total: int) -> None:
        meter.add(0)

    meter.add(0)
    with only_one(repo.locks / f"{file.etag}.lock", waiting):
        if blob.exists():  # another process brought it meanwhile
            meter.add(file.nbytes)
            return
        content = Checked(partial, file)
        resumed = content.have
        meter.add(content.have)
        _read(content, meter)
        if not content.right and resumed:  # what was left of an earlier attempt may be what is wrong
            content.restart(meter)
            _read(content, meter)
        if not content.right:
            found = content.found
            partial.unlink()
            kind = "sha256" if len(file.etag) == 64 else "git sha1"
            raise CheckpointError(
                f"{file.name} of {repo.repo} arrived with {kind} {found}, the hub says {file.etag}: it was changed on "
                "its way, or the mirror's copy is broken. It was not kept; try again, or another HF_ENDPOINT",
                path=file.name,
            )
        content.keep_as(blob)


def _read(content: Checked, meter: Meter) -> None:
    """Fills the file, however often the connection breaks as long as some of it comes through."""
    attempt, furthest = 0, content.have
    while content.have < content.file.nbytes:
        wait = 0.0
        problem: Exception = TimeoutError(f"the hub ends its answers before the end of {content.file.name}")
        try:
            _ask(content, meter)
        except Refused as refusal:
            if refusal.wait is None or refusal.wait > LONGEST_WAIT:
                raise
            wait, problem = refusal.wait, refusal
        except transport_errors() as error:
            problem = error
        if content.have == content.file.nbytes:
            return
        attempt = 1 if content.have > furthest else attempt + 1
        furthest = max(furthest, content.have)  # a hub that makes us begin again and again ends too
        if attempt == ATTEMPTS:
            raise problem
        meter.sleep(max(wait, BACKOFF_SECONDS * 2 ** (attempt - 1)))


def transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's HTTP client raises when a connection breaks; which client that is depends on the hub's version."""
    from huggingface_hub.errors import HfHubHTTPError

    found = [kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError" and issubclass(kind, Exception)]
    return tuple(found)


def _ask(content: Checked, meter: Meter) -> None:
    """One request for what is missing. Raises Refused, and what the HTTP client raises."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not in __all__

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if content.have:
        headers["Range"] = f"bytes={content.have}-"
    timeout = (CONNECT_SECONDS, READ_SECONDS, READ_SECONDS, None)
    with get_session().stream("GET", content.file.url, headers=headers, timeout=timeout) as response:
        status = response.status_code
        if status == 416 and content.have:  # what we have is of another file
            content.restart(meter)
            return
        if status not in (200, 206):
            response.read()
            again = status in (408, 429) or status >= 500
            raise Refused(response, retry_after(response.headers) if again else None)
        if content.have and not (status == 206 and _starts_at(response.headers, content.have)):
            content.restart(meter)
        if status == 206 and not _starts_at(response.headers, content.have):
            return
        with content.path.open("ab") as out:
            for chunk in response.iter_bytes():
                content.append(out, chunk, meter)


def _starts_at(headers: Any, offset: int) -> bool:
    return str(headers.get("Content-Range", "")).startswith(f"bytes {offset}-")


def retry_after(headers: Any) -> float:
    """Seconds that an answer asks to wait; 0 where it does not, or gives a date."""
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return 0.0


def patiently(call: Callable[[], T]) -> T:
    """A small question to the hub, asked again while it is busy or limits requests."""
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(QUESTIONS - 1):
        try:
            return call()
        except HfHubHTTPError as error:
            response = getattr(error, "response", None)
            if response is None or not (response.status_code == 429 or response.status_code >= 500):
                raise
            wait = max(retry_after(response.headers), BACKOFF_SECONDS * 2**attempt)
            if wait > LONGEST_WAIT:
                raise
            time.sleep(wait)
    return call()
