"""The tokenizer files of a Hugging Face folder: which of them holds the vocabulary, and what the others say.

tokenizer.json stands over every other file; without it tekken.json, a SentencePiece or tiktoken file, vocab.json with
merges.txt, or vocab.txt are built into one and kept. It knows file names and the keys of tokenizer_config.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from octavo.errors import CheckpointError
from octavo.tokenizer import vocabulary
from octavo.tokenizer.kept import kept_or_built
from octavo.tokenizer.pre_tokenizers import BYTE_PRES, BytePre
from octavo.tokenizer.vocabulary import CONTROL, NORMAL, Pieces, VocabularyFault, VocabularyFile

VERSION = 1  # of these conversions; a change makes new cache entries
MAX_FILE = 256 << 20  # bytes; the largest published vocabulary file has 33 MiB
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Looked for in this order; the first that is there holds the vocabulary.
FILES = (
    "tokenizer.json",
    "tekken*.json",
    "tokenizer.model*",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
) + ("*.tiktoken", "tiktoken.model", "*tokenizer*.model*", "vocab.json", "vocab.txt")
_QWEN2_CLASSES = frozenset({"Qwen2Tokenizer", "Qwen2TokenizerFast"})


@dataclass(frozen=True)
class FolderTokenizer:
    """special: names as in tokenizer_config.json -> tokens. eos_ids: the main one first. templates: name -> Jinja."""

    backend: tokenizers.Tokenizer
    special: Mapping[str, str]
    eos_ids: tuple[int, ...]
    templates: Mapping[str, str]


def read_folder(folder: Path, cache_folder: Path | None = None) -> FolderTokenizer:
    """The folder's tokenizer. Raises CheckpointError that names the file, UnsupportedModel for unknown kinds."""
    config = _read_json(folder / "tokenizer_config.json")
    found = _find(folder)
    if found.name == "tokenizer.json":
        backend, stated = _read_tokenizer_json(found), None
    else:
        stated = _open(found, config)
        backend = kept_or_built(_entry(found, cache_folder), stated.build)
        _add_listed(backend, _read_json(folder / "added_tokens.json"))
    try:
        special = _add_configured_tokens(backend, config, _read_json(folder / "special_tokens_map.json"))
        if stated is not None:
            special = {**stated.special, **special}
        _set_surroundings(backend, config, special, stated)
    except (VocabularyFault, AttributeError, TypeError, ValueError) as error:
        file = folder / "tokenizer_config.json"
        raise CheckpointError(f"{file}: its tokens do not fit {found.name}: {error}", path=str(file)) from error
    ends = _read_json(folder / "generation_config.json").get("eos_token_id")
    turn_ends = vocabulary.turn_ends(backend) if stated is not None and ends is None else []
    eos = _unique([backend.token_to_id(special.get("eos_token", "")), *_id_list(ends), *turn_ends])
    return FolderTokenizer(backend, special, eos, folder_templates(folder, config))


def folder_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """chat_template.jinja and additional_chat_templates/ before chat_template.json before tokenizer_config.json."""
    templates: dict[str, str] = {}
    for source in (config, _read_json(folder / "chat_template.json")):
        value = source.get("chat_template")
        if isinstance(value, str):
            templates["default"] = value
        for item in value if isinstance(value, list) else []:
            if isinstance(item, dict) and isinstance(item.get("template"), str):
                templates[str(item.get("name", "default"))] = item["template"]
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = _read_text(file)
    main = folder / "chat_template.jinja"
    if main.is_file():
        templates["default"] = _read_text(main)
    return templates


def _find(folder: Path) -> Path:
    for pattern in FILES:
        found = next((file for file in sorted(folder.glob(pattern)) if file.is_file()), None)
        if found is not None:
            return found
    raise CheckpointError(
        f"{folder} has no tokenizer: neither tokenizer.json nor one of {', '.join(FILES[1:])}. Copy the model's "
        "tokenizer.json into it.",
        path=str(folder),
    )


def _entry(file: Path, cache_folder: Path | None) -> Path | None:
    if cache_folder is None:
        return None
    with file.open("rb") as opened:
        content = hashlib.file_digest(opened, "sha256").hexdigest()
    name = repr((VERSION, tokenizers.__version__, file.name, content))
    return cache_folder / hashlib.sha256(name.encode()).hexdigest()


def _read_tokenizer_json(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except BaseException as error:
        if not vocabulary.is_fault(error):
            raise
        raise CheckpointError(f"cannot read {file}: {str(error)[:300]}", path=str(file)) from error


def _open(file: Path, config: Mapping[str, Any]) -> VocabularyFile:
    # Most folders have tokenizer.json and need no reader of other kinds.
    from octavo.tokenizer.sentencepiece_file import is_sentencepiece, open_sentencepiece
    from octavo.tokenizer.tiktoken_file import is_tiktoken, open_tekken, open_tiktoken

    content = _read_bytes(file)
    if file.name == "vocab.json":
        return _open_vocab_json(file, content, config)
    if file.name == "vocab.txt":
        return _open_vocab_txt(file, content, config)
    if file.suffix == ".json":
        return open_tekken(file, content)
    if is_tiktoken(content):
        return open_tiktoken(file, content, _listed(config))
    if is_sentencepiece(content):
        return open_sentencepiece(file, content)
    raise CheckpointError(f"{file} is neither a SentencePiece model nor a tiktoken file.", path=str(file))


def _open_vocab_json(file: Path, content: bytes, config: Mapping[str, Any]) -> VocabularyFile:
    """GPT-2's pair of files; Qwen 2 cuts its text in another way."""
    merges_file = file.with_name("merges.txt")

    def build() -> tokenizers.Tokenizer:
        pre = BYTE_PRES["qwen2"] if config.get("tokenizer_class") in _QWEN2_CLASSES else BytePre()
        try:
            vocab = {str(token): int(id_) for token, id_ in json.loads(content).items()}
            tokens = [""] * (max(vocab.values()) + 1) if len(vocab) * 4 > max(vocab.values()) else []
            for token, id_ in vocab.items():
                tokens[id_] = token
            lines = _read_text(merges_file).splitlines()
            merges = [pair for line in lines if not line.startswith("#version") and (pair := _pair(line))]
            types = [NORMAL if token else vocabulary.UNUSED for token in tokens]
            return vocabulary.byte_level(Pieces(tokens, types), merges, pre)
        except (ValueError, AttributeError, IndexError, TypeError, RecursionError, VocabularyFault) as error:
            raise CheckpointError(f"{file} and {merges_file.name} do not fit: {error}", path=str(file)) from error

    return VocabularyFile(file, build, {})


def _pair(line: str) -> tuple[str, str] | None:
    left, _, right = line.partition(" ")
    return (left, right) if left and right else None


def _open_vocab_txt(file: Path, content: bytes, config: Mapping[str, Any]) -> VocabularyFile:
    """BERT's list of word pieces, one a line."""
    special = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}

    def build() -> tokenizers.Tokenizer:
        tokens = content.decode("utf-8", "replace").splitlines()
        types = [CONTROL if token in (*special.values(), "[MASK]") else NORMAL for token in tokens]
        strip = config.get("strip_accents")
        lowercase = bool(config.get("do_lower_case", True))
        try:
            unknown = tokens.index("[UNK]")
            return vocabulary.word_piece(Pieces(tokens, types), unknown, lowercase, strip)
        except (ValueError, VocabularyFault) as error:
            raise CheckpointError(f"{file} is no list of word pieces: {error}", path=str(file)) from error

    return VocabularyFile(file, build, special)


def _set_surroundings(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], special: Mapping[str, str], stated: VocabularyFile | None
) -> None:
    """A tokenizer.json has its own, unless the configuration says it by flag; other files have their family's."""
    if "cls_token" in special and stated is not None:
        vocabulary.surround(backend, special["cls_token"], special.get("sep_token"), [special.get("sep_token", "")])
    elif stated is not None or "add_bos_token" in config or "add_eos_token" in config:
        add_bos = config.get("add_bos_token", stated is not None and stated.add_bos)
        add_eos = config.get("add_eos_token", stated is not None and stated.add_eos)
        bos, eos = special.get("bos_token"), special.get("eos_token")
        vocabulary.surround(backend, bos if add_bos else None, eos if add_eos else None)


def _listed(config: Mapping[str, Any]) -> dict[int, str]:
    """Tokens by id of `added_tokens_decoder`."""
    listed = config.get("added_tokens_decoder")
    entries = listed.items() if isinstance(listed, dict) else ()
    return {int(id_): str(entry["content"]) for id_, entry in entries if str(id_).isdigit() and "content" in entry}


def _add_listed(backend: tokenizers.Tokenizer, added: Mapping[str, Any]) -> None:
    """added_tokens.json: token -> id, added in the order of the ids."""
    for token, _ in sorted(added.items(), key=lambda item: (not isinstance(item[1], int), item[1])):
        if backend.token_to_id(token) is None:
            backend.add_tokens([AddedToken(token, normalized=False)])


def _add_configured_tokens(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], special_map: Mapping[str, Any]
) -> dict[str, str]:
    """Adds the tokens that tokenizer_config.json names and the vocabulary lacks; returns the named special tokens."""
    known = {str(token.content) for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder")
    extra = sorted(listed.items(), key=lambda item: int(item[0])) if isinstance(listed, dict) else []
    for _, entry in extra:
        if isinstance(entry, dict) and entry.get("content") not in known:
            backend.add_tokens([_added_token(entry)])
            known.add(entry["content"])
    named: dict[str, str] = {}
    for name in SPECIAL_NAMES:
        entry = config.get(name, special_map.get(name))
        if entry is None:
            continue
        token = _added_token(entry)
        named[name] = token.content
        # Also where it is listed as a plain token: a named token is special.
        if token.content not in known or not _is_special(backend, token.content):
            backend.add_special_tokens([token])
    more = config.get("extra_special_tokens", config.get("additional_special_tokens"))
    for entry in more if isinstance(more, list) else []:
        token = _added_token(entry)
        if not _is_special(backend, token.content):
            backend.add_special_tokens([token])
    return named


def _is_special(backend: tokenizers.Tokenizer, content: str) -> bool:
    id_ = backend.token_to_id(content)
    token = None if id_ is None else backend.get_added_tokens_decoder().get(id_)
    return token is not None and bool(token.special)


def _added_token(entry: Any) -> AddedToken:
    if isinstance(entry, str):
        return AddedToken(entry, normalized=False, special=True)
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(str(entry.get("content", "")), **{name: bool(entry[name]) for name in flags if name in entry})


def _read_bytes(file: Path) -> bytes:
    try:
        if file.stat().st_size > MAX_FILE:
            raise CheckpointError(f"{file} has more than {MAX_FILE >> 20} MiB; no vocabulary has.", path=str(file))
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}", path=str(file)) from error


def _read_text(file: Path) -> str:
    try:
        return _read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not UTF-8: {error}", path=str(file)) from error


def _read_json(file: Path) -> dict[str, Any]:
    """An optional file's object; {} where there is none."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(_read_bytes(file))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}", path=str(file)) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no JSON object.", path=str(file))
    return value


def _id_list(value: Any) -> list[int]:
    ids = value if isinstance(value, list) else [value]
    return [id_ for id_ in ids if isinstance(id_, int)]


def _unique(ids: Iterable[int | None]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(id_ for id_ in ids if id_ is not None))
