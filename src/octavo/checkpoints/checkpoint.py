"""A model on disk: its configuration, its tensors by name, its tokenizer files.

Tensors keep the names of their file; which weight of a model they are is the model's business. Bytes are read with
pread into the caller's buffer and never stay mapped. It knows no network and no model family.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoints.digest import files_digest
from octavo.errors import CheckpointError, ModelNotFound

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
GIT_LFS = b"version https://git-lfs"  # how a pointer file begins, in the place of what it points to
LFS_POINTER = "it is a git-lfs pointer, not the file itself: run `git lfs pull` where it was cloned"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: `shape` in Hugging Face's order ([out, in] of a linear), at bytes [offset, offset + nbytes)."""

    name: str
    format: str  # a name of quantization.format.FORMATS, or of a type that is not built
    shape: tuple[int, ...]
    nbytes: int
    file: Path
    offset: int


@dataclass(frozen=True)
class Checkpoint:
    """A model's files, opened and checked; made by `open_checkpoint`."""

    path: Path  # the folder or .gguf file
    kind: str  # gguf, safetensors
    display_name: str
    weight_format: str  # what the weights mostly are, for people: Q4_K_M, BF16
    config: dict[str, Any]  # in the names of Hugging Face, defaults filled in
    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]  # every file whose bytes decide the numbers: weights and configuration
    generation_config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    tokenizer_files: Mapping[str, Path] = field(default_factory=dict)  # file name -> path; empty for GGUF
    metadata_reader: Callable[[bool], dict[str, Any]] = lambda arrays: {}

    def read(
        self, name: str, offset: int = 0, nbytes: int | None = None, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Bytes [offset, offset + nbytes) of a tensor, by default all of it, into `out` (contiguous) or a new array.

        Returns the bytes read, as a view of `out` where given. Raises CheckpointError where the file has become
        shorter since it was opened.
        """
        tensor = self.tensors[name]
        count = tensor.nbytes - offset if nbytes is None else nbytes
        if offset < 0 or count < 0 or offset + count > tensor.nbytes:
            raise ValueError(f"{name}: bytes {offset} to {offset + count} are outside its {tensor.nbytes}")
        target = np.empty(count, np.uint8) if out is None else out[:count]
        if target.size != count:
            raise ValueError(f"{name}: {count} bytes do not fit a buffer of {target.size}")
        read_exactly(tensor.file, tensor.offset + offset, target, name)
        return target

    def tokenizer_metadata(self, arrays: bool = True) -> dict[str, Any]:
        """The tokenizer's keys of a GGUF file with their arrays as lists, read now and not kept; {} for a folder.
        arrays: False leaves the arrays out, which take 0.2 s for 150,000 tokens."""
        return self.metadata_reader(arrays)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: those of the generation config, else of the config."""
        found = self.generation_config.get("eos_token_id")
        if found is None:
            found = self.config.get("eos_token_id")
        ids = found if isinstance(found, list) else [found]
        return tuple(dict.fromkeys(token for token in ids if isinstance(token, int) and not isinstance(token, bool)))

    def digest(self, cache_dir: Path | None = None) -> str:
        """SHA-256 (hex) of the files, remembered in `cache_dir` by path, size, mtime and inode."""
        return files_digest(self.files, cache_dir)


def read_exactly(path: Path, offset: int, target: NDArray[np.uint8], what: str) -> None:
    """Fills `target` from a file's byte `offset` on. Raises CheckpointError naming `what`."""
    view = target.data
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror}", path=str(path), key=what) from error
    try:
        done = 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise CheckpointError(
                    f"{path}: {what} ends at byte {offset + len(view):,} but the file has {offset + done:,}; "
                    "it was cut since it was opened",
                    path=str(path),
                    key=what,
                )
            done += count
    except OSError as error:
        raise CheckpointError(f"cannot read {what} of {path}: {error.strerror}", path=str(path), key=what) from error
    finally:
        os.close(descriptor)


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Opens a Hugging Face folder, a .gguf file (of several: any of them), or a folder with exactly one such model.

    Raises ModelNotFound where nothing is there, CheckpointError for broken files, UnsupportedModel for what is not
    built. Only headers and small JSON files are read.
    """
    from octavo.checkpoints.folder import open_folder
    from octavo.checkpoints.gguf_config import open_gguf
    from octavo.checkpoints.kinds import only_gguf

    path = Path(path)
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist", param="model")
    if path.is_dir():
        if (path / "config.json").exists():
            return open_folder(path)
        return open_gguf(only_gguf(path))
    if path.suffix in PICKLED:
        raise CheckpointError(refuse_pickle(path), path=str(path))
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} needs its config.json beside it: give the folder {path.parent}", path=str(path))
    return open_gguf(path)


def refuse_pickle(path: Path) -> str:
    """The words for pickled weights, which run code when they are loaded."""
    return (
        f"{path} is a pickle, which can run any code when it is loaded; octavo reads only safetensors and GGUF. "
        "Convert it where you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) of "
        "transformers, and its tokenizer likewise"
    )
