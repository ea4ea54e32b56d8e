"""A hub id -> a folder or .gguf file in the hub's cache.

The hub's own library does the downloading; it is imported when a hub id is used. What the cache holds whole is used
without any network call. Only weights, configuration, tokenizer files and templates are fetched: never code or pickles.
"""

from __future__ import annotations

import re
from pathlib import Path

from octavo.checkpoints.safetensors import INDEX, read_json
from octavo.errors import CheckpointError, ModelNotFound, UnsupportedModel

HUB_ID = re.compile(r"^(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<quantization>[\w.-]+))?$")
CONNECT_SECONDS = 3.0
FOLDER_FILES = (
    "config.json", "generation_config.json", "*.safetensors", INDEX, "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
PREFERRED = ("Q4_K_M", "Q4_0", "Q8_0", "Q4_1", "BF16", "F16")  # when an id names no quantization
PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def resolve_hub(hub_id: str, *, revision: str | None, cache: Path | None, offline: bool) -> Path:
    """The local folder or file of `org/name` or `org/name:QUANT`, downloaded if the cache does not have it whole.

    `cache` is the hub's cache folder (None: where the hub's library keeps it). Raises ModelNotFound naming the folder
    looked in, or what the hub said.
    """
    found = HUB_ID.match(hub_id)
    if found is None:
        raise ModelNotFound(f"'{hub_id}' is not a hub id (org/name or org/name:QUANT)", param="model")
    repo, quantization = found["repo"], found["quantization"]
    from huggingface_hub import constants

    folder = cache or Path(constants.HF_HUB_CACHE)
    cached = _cached(repo, revision, folder)
    local = _usable(cached, quantization) if cached else None
    if local is not None:
        return local
    if offline or constants.HF_HUB_OFFLINE:
        raise ModelNotFound(
            f"{hub_id} is not (or not whole) in the hub's cache {folder}, and --offline is set", param="model"
        )
    return _download(repo, quantization, revision, folder)


def _cached(repo: str, revision: str | None, cache: Path) -> Path | None:
    """The snapshot folder of a revision in the cache, whole or not, without the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, cache_dir=cache, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _usable(snapshot: Path, quantization: str | None) -> Path | None:
    """The folder, or the .gguf file in it, when nothing of it is missing."""
    if quantization is None and (snapshot / "config.json").exists():
        index = snapshot / INDEX
        if index.exists():
            weight_map = read_json(index, 64 << 20).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(f"{index}: key weight_map is missing", path=str(index), key="weight_map")
            return snapshot if all((snapshot / str(name)).exists() for name in weight_map.values()) else None
        if any(snapshot.glob("*.safetensors")):
            return snapshot
    names = [path.name for path in snapshot.glob("*.gguf")]
    chosen = choose_gguf(names, quantization)
    return snapshot / chosen if chosen else None


def choose_gguf(names: list[str], quantization: str | None) -> str | None:
    """The file of a quantization (`-Q4_K_M.gguf` or `.Q4_K_M.gguf`, any case); without one, by PREFERRED."""
    candidates = [name for name in sorted(names) if name.endswith(".gguf") and not PART.search(name)]
    for wanted in (quantization,) if quantization else PREFERRED:
        for name in candidates:
            if re.search(rf"(^|[.-]){re.escape(wanted)}\.gguf$", name, re.IGNORECASE):
                return name
    return candidates[0] if candidates and not quantization else None


def _download(repo: str, quantization: str | None, revision: str | None, cache: Path) -> Path:
    """Asks the hub what the repository has, fetches what we read of it, all of one commit."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    # what the hub's HTTP library raises when nothing answers; which library that is depends on the hub's version
    refused: list[type[Exception]] = [HfHubHTTPError, OSError]
    refused += [kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError" and issubclass(kind, Exception)]
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=CONNECT_SECONDS)
        names = [entry.rfilename for entry in info.siblings or []]
        patterns, wanted = _selection(repo, names, quantization)
        folder = Path(
            snapshot_download(
                repo,
                revision=info.sha or revision,
                cache_dir=cache,
                allow_patterns=list(patterns),
                etag_timeout=CONNECT_SECONDS,
            )
        )
        return folder / wanted if wanted else folder
    except GatedRepoError as error:
        raise ModelNotFound(
            f"hub needs a token for {repo} (gated). Accept its terms on the model page, then set HF_TOKEN.",
            param="model",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(f"the hub has no model {repo} (or it is private: set HF_TOKEN)", param="model") from error
    except tuple(refused) as error:
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ModelNotFound(
            f"{repo} is not in the hub's cache {cache} and the hub could not be asked: {said}. "
            "Give a folder or a .gguf file instead, or copy the cache from a machine that has it.",
            param="model",
        ) from error


def _selection(repo: str, names: list[str], quantization: str | None) -> tuple[tuple[str, ...], str]:
    """What to fetch, and the .gguf file to open ('' for a safetensors folder)."""
    if quantization is None and "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return FOLDER_FILES, ""
    chosen = choose_gguf(names, quantization)
    if chosen:
        return (chosen,), chosen
    if any(PART.search(name) for name in names):
        raise UnsupportedModel(f"{repo} has only sharded GGUF files, which are not supported yet")
    ggufs = ", ".join(name for name in names if name.endswith(".gguf"))
    if quantization and ggufs:
        raise ModelNotFound(f"{repo} has no {quantization} file; it has: {ggufs}", param="model")
    raise ModelNotFound(f"{repo} has neither safetensors weights nor GGUF files", param="model")
