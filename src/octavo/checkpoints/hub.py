"""A hub id -> a folder or .gguf file in the hub's cache, downloaded if it is not there whole.

What the cache holds whole is used without any network call. Otherwise the hub is asked once what the repository has,
and only weights, configuration, tokenizer files and templates are fetched, all of one commit: never code or pickles.
The hub's own library knows tokens, mirrors and proxies; it is imported when the network is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from octavo.checkpoints.checkpoint import PICKLED
from octavo.checkpoints.digest import remember_digest
from octavo.checkpoints.download import Progress
from octavo.checkpoints.gguf_shards import part_names
from octavo.checkpoints.hub_cache import RepoCache, indexed_weights
from octavo.checkpoints.hub_names import (
    HubName,
    choose_gguf,
    gguf_models,
    is_folder_model,
    is_small,
    weight_names,
)
from octavo.checkpoints.safetensors import INDEX
from octavo.checkpoints.transfer import (
    CONNECT_SECONDS,
    HubFile,
    Interrupted,
    Refused,
    fetch_all,
    patiently,
    retry_after,
    transport_errors,
)
from octavo.errors import ModelNotFound, OctavoError, UnsupportedModel


def resolve_hub(
    name: HubName, *, cache: Path, digests: Path | None = None, offline: bool, progress: Progress | None = None
) -> Path:
    """The local folder or file of a name, downloaded if the cache does not have it whole.

    `cache` is the hub's cache folder; in `digests` (OCTAVO_CACHE) the SHA-256 of what was fetched is remembered. Raises
    ModelNotFound naming the folder looked in, or what the hub said and what to do about it.
    """
    repo = RepoCache(cache, name.repo)
    found = repo.find(name)
    if found is not None:
        return found
    if offline:
        raise ModelNotFound(
            f"{spelled(name)} is not (or not whole) in the hub's cache {cache}, and --offline is set", param="model"
        )
    try:
        return _download(name, repo, digests, progress or (lambda stage, done, total: None))
    except Interrupted:  # without the error that caused it: the user's interrupt
        raise KeyboardInterrupt from None
    except (OctavoError, AssertionError):
        raise
    except Exception as error:
        _explain(error, name, repo, cache)


def spelled(name: HubName) -> str:
    """As it is written: `org/name@revision:Q4_K_M`."""
    return f"{name.repo}{f'@{name.revision}' if name.revision else ''}{f':{name.tag}' if name.tag else ''}"


def _download(name: HubName, repo: RepoCache, digests: Path | None, report: Progress) -> Path:
    """Asks the hub what the repository has, fetches what we read of it."""
    from huggingface_hub import HfApi

    info = patiently(
        lambda: HfApi().model_info(name.repo, revision=name.revision, timeout=2 * CONNECT_SECONDS, files_metadata=True)
    )
    files = _listed(info, name.repo)
    if name.tag is None and is_folder_model(files):
        chosen, wanted = "", [each for each in files if is_small(each)]
        _bring(wanted, files, repo, digests, report)
        wanted += _weights(files, repo)
    else:
        chosen = _gguf(name, files)
        wanted = part_names(chosen)
    if lacking := [each for each in wanted if each not in files]:
        raise ModelNotFound(f"{name.repo} lacks {lacking[0]}, which is a part of the model", param="model")
    _bring(wanted, files, repo, digests, report)
    for each in wanted:
        repo.link(str(info.sha), each, files[each].etag)
    repo.remember(name.revision, str(info.sha))
    return repo.snapshot(str(info.sha)) / chosen


def _listed(info: Any, repo: str) -> dict[str, HubFile]:
    """The files of a repository that the hub tells size and digest of."""
    from huggingface_hub import hf_hub_url

    found = {}
    for each in info.siblings or []:
        etag = each.lfs.sha256 if each.lfs is not None else each.blob_id
        if etag and each.size is not None:
            url = hf_hub_url(repo, each.rfilename, revision=info.sha)
            found[each.rfilename] = HubFile(each.rfilename, each.size, etag, url)
    return found


def _bring(
    wanted: Iterable[str], files: Mapping[str, HubFile], repo: RepoCache, digests: Path | None, report: Progress
) -> None:
    chosen = [files[each] for each in wanted]
    fetch_all(chosen, repo, report)
    for each in chosen:
        if len(each.etag) == 64 and digests is not None:
            remember_digest(repo.blob(each.etag), each.etag, digests)


def _weights(files: Mapping[str, HubFile], repo: RepoCache) -> list[str]:
    """Those of the index, which is there by now, else those that names tell."""
    return indexed_weights(repo.blob(files[INDEX].etag)) if INDEX in files else weight_names(files)


def _gguf(name: HubName, files: Mapping[str, HubFile]) -> str:
    """The GGUF model to fetch, by its first part. Raises ModelNotFound, UnsupportedModel saying what is there."""
    chosen = choose_gguf(files, name.tag)
    if chosen:
        return chosen
    models = gguf_models(files)
    if models:
        raise ModelNotFound(f"{name.repo} has no {name.tag} file; it has: {', '.join(models)}", param="model")
    if name.tag and is_folder_model(files):
        raise ModelNotFound(
            f"{name.repo} has no GGUF files, so there is no {name.tag} of it; its safetensors weights are "
            f"{name.repo} without a tag",
            param="model",
        )
    if "adapter_config.json" in files:
        raise UnsupportedModel(f"{name.repo} is a LoRA adapter (adapter_config.json), not a model")
    if "model_index.json" in files:
        raise UnsupportedModel(f"{name.repo} is an image or video model for diffusers (model_index.json)")
    pickles = sorted(each for each in files if each.endswith(PICKLED))
    if pickles:
        raise UnsupportedModel(
            f"{name.repo} has only pickled weights ({pickles[0]}), which can run any code when they are loaded; look "
            "for a repository with safetensors or GGUF files of it"
        )
    raise ModelNotFound(f"{name.repo} has neither safetensors weights nor GGUF files", param="model")


def _explain(error: Exception, name: HubName, repo: RepoCache, cache: Path) -> NoReturn:
    """The hub's or the network's error in words that say what to do. Anything else is raised as it is."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    known: tuple[type[Exception], ...] = (HfHubHTTPError, OfflineModeIsEnabled, Refused, OSError, *transport_errors())
    if not isinstance(error, known):
        raise error
    response = getattr(error, "response", None)
    said = None if response is None else _status(response, name, str(constants.ENDPOINT))
    if said is None and isinstance(error, OSError) and error.filename:
        said = f"{error.filename}: {error.strerror}; what was fetched of {name.repo} is kept for the next attempt"
    if said is None:
        first = (str(error) or type(error).__name__).splitlines()[0][:200]
        said = (
            f"{spelled(name)} is not in the hub's cache {cache} and the hub could not be asked at "
            f"{constants.ENDPOINT}: {first}. Give a folder or a .gguf file instead, or copy the cache from a machine "
            "that has it, or set HF_ENDPOINT to a mirror."
        )
    raise ModelNotFound(said, param="model") from error


def _status(response: Any, name: HubName, endpoint: str) -> str | None:
    """The words for a status and the hub's own code of the error; None for one without a cure."""
    from huggingface_hub import get_token

    status, code, token = response.status_code, response.headers.get("X-Error-Code", ""), get_token()
    page = f"{endpoint}/{name.repo}"
    if code == "GatedRepo":
        if token:
            return f"the hub's token has no access to {name.repo} (gated): ask for it at {page}, with the token's user"
        return f"hub needs a token for {name.repo} (gated). Accept its terms at {page}, then set HF_TOKEN"
    if code == "RevisionNotFound":
        return f"{name.repo} has no revision '{name.revision}' (a branch, tag or commit; see {page}/tree/main)"
    if code == "EntryNotFound":
        return f"the hub lists a file of {name.repo} that it does not have any more: try again"
    if status == 401 and token and "invalid" in str(response.headers.get("X-Error-Message", "")).lower():
        return "the hub does not know the token: check HF_TOKEN, or `hf auth login`"
    if status == 403:
        return f"the token may not read {name.repo}: give it the right to read this repository (see {page})"
    if status in (401, 404):
        private = "the token cannot see it" if token else "if it is private, set HF_TOKEN"
        return f"the hub has no model {name.repo} ({private}); look at {page}"
    if status == 429:
        wait = retry_after(response.headers)
        later = f"in {wait:.0f} s" if wait else "later"
        return f"the hub limits requests: try again {later}{'' if token else ', or set HF_TOKEN for a higher limit'}"
    if status >= 500:
        return (
            f"the hub at {endpoint} is out of order (status {status}): try again later, or set HF_ENDPOINT to a mirror"
        )
    return None
