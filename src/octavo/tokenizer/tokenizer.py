"""Strings <-> ids: one face over a tokenizers.Tokenizer, with the bytes of every token and the special ids.

It knows the files beside a tokenizer.json and, through gguf_tokenizer, the keys of a GGUF; it does not know what a chat
is (it only carries the templates' text) nor how text is streamed (detokenizer).
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.checkpoints.digest import remembered_digest
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.tokenizer import gguf_tokenizer
from octavo.tokenizer.byte_table import DecoderKind, byte_table, decoder_kind

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Characters. `encode` of the library keeps the GIL: 0.5 MB held up every other thread for 0.19 s. `encode_batch_fast`
# gives it back (1.7 ms) and takes a quarter less, but hands the text to a thread of its own, which a short one need not
# wait for.
LONG_TEXT = 8192


@dataclass(frozen=True)
class TokenizerFacts:
    """What stands beside the vocabulary.

    special_tokens: name as in tokenizer_config.json -> text. eos_ids: every id that ends a turn, the main one first.
    chat_templates: name -> Jinja source, `default` the usual one; empty for a base model.
    """

    special_tokens: Mapping[str, str] = field(default_factory=dict)
    eos_ids: tuple[int, ...] = ()
    chat_templates: Mapping[str, str] = field(default_factory=dict)


class Tokenizer:
    """encode, decode and the tables of one vocabulary. Safe to use from several threads; ids are plain ints."""

    def __init__(self, backend: tokenizers.Tokenizer, facts: TokenizerFacts) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._lock = threading.Lock()
        self._literal: tokenizers.Tokenizer | None = None  # a copy that takes names of special tokens as text
        self._bytes: list[bytes] | None = None
        self._visible: list[bytes] | None = None
        self._added = backend.get_added_tokens_decoder()
        self.facts = facts
        self.kind: DecoderKind = decoder_kind(backend)
        bos = facts.special_tokens.get("bos_token")
        self.bos_id: int | None = None if bos is None else backend.token_to_id(bos)
        self.eos_ids = facts.eos_ids

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, cache_folder: Path | None = None) -> Tokenizer:
        """The tokenizer of a GGUF file or a Hugging Face folder; eos_ids are joined by those of the configuration."""
        if checkpoint.kind == "gguf":
            try:
                tokenizer = cls._of_gguf(checkpoint, cache_folder)
            except (CheckpointError, UnsupportedModel) as error:
                raise type(error)(f"{checkpoint.path}: {error.message}") from error
        else:
            tokenizer = cls.from_folder(checkpoint.path)
        tokenizer.eos_ids = _unique([*tokenizer.eos_ids, *checkpoint.eos_token_ids])
        return tokenizer

    @classmethod
    def _of_gguf(cls, checkpoint: Checkpoint, cache_folder: Path | None) -> Tokenizer:
        """Where the vocabulary's digest is remembered and its tokenizer kept, the file's arrays are not read."""
        whole = functools.cache(checkpoint.tokenizer_metadata)

        def digest() -> str:
            return gguf_tokenizer.content_digest(whole())

        named = remembered_digest(checkpoint.path, cache_folder, "vocabulary", digest)
        return cls.from_gguf(checkpoint.tokenizer_metadata(arrays=False), cache_folder, named, whole)

    @classmethod
    def from_folder(cls, path: Path | str) -> Tokenizer:
        """The tokenizer of a Hugging Face folder: tokenizer.json, tokenizer_config.json, generation_config.json and
        the chat template's files. Raises CheckpointError that names the file."""
        folder = Path(path)
        file = folder / "tokenizer.json"
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for every fault of the file
            raise CheckpointError(f"cannot read {file}: {str(error)[:300]}", path=str(file)) from error
        config = _read_json(folder / "tokenizer_config.json")
        special = _add_configured_tokens(backend, config, _read_json(folder / "special_tokens_map.json"))
        if "add_bos_token" in config or "add_eos_token" in config:
            _set_template(backend, special, bool(config.get("add_bos_token")), bool(config.get("add_eos_token")))
        stated = _read_json(folder / "generation_config.json").get("eos_token_id")
        eos = _unique([backend.token_to_id(special.get("eos_token", "")), *_id_list(stated)])
        return cls(backend, TokenizerFacts(special, eos, _folder_templates(folder, config)))

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        cache_folder: Path | None = None,
        digest: str | None = None,
        whole: Callable[[], Mapping[str, Any]] | None = None,
    ) -> Tokenizer:
        """The tokenizer inside a GGUF; `metadata` maps its keys to Python values. With `digest` (a name of the content
        that the caller has) a cached tokenizer is used without touching the large arrays of `metadata`, which only
        `whole` need have."""
        backend = gguf_tokenizer.load(metadata, cache_folder, digest, whole)
        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        named = {
            name: _token_at(backend, metadata, f"{gguf_tokenizer.KEY}{key}_token_id") for name, key in names.items()
        }
        special = {name: token for name, token in named.items() if token is not None}
        add_eos = bool(metadata.get(f"{gguf_tokenizer.KEY}add_eos_token", False))
        _set_template(backend, special, gguf_tokenizer.adds_bos(metadata), add_eos)
        ends = [_token_at(backend, metadata, f"{gguf_tokenizer.KEY}{name}_token_id") for name in ("eos", "eot", "eom")]
        stated = [backend.token_to_id(token) for token in ends if token is not None]
        turn_ends = [
            id_
            for id_, token in sorted(backend.get_added_tokens_decoder().items())
            if token.special and token.content in gguf_tokenizer.END_OF_TURN
        ]
        templates = {
            key.removeprefix("tokenizer.chat_template").removeprefix(".") or "default": value
            for key, value in metadata.items()
            if key.startswith("tokenizer.chat_template") and isinstance(value, str)
        }
        return cls(backend, TokenizerFacts(special, _unique([*stated, *turn_ends]), templates))

    @functools.cached_property
    def vocab_size(self) -> int:
        """Ids lie in [0, vocab_size); the model's table may be padded beyond. Takes about 0.1 s for 150,000 tokens."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def adds_bos(self) -> bool:
        """Whether add_special_tokens puts BOS in front."""
        return self.bos_id is not None and self.encode("", add_special_tokens=True)[:1] == [self.bos_id]

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the usual chat template; None for a base model."""
        return self.facts.chat_templates.get("default")

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The library's object, for the tables that a grammar compiler needs."""
        return self._backend

    def encode(self, text: str, add_special_tokens: bool = False, special: bool = True) -> list[int]:
        """Ids of `text`. add_special_tokens: with what the model puts around a sequence (BOS). special: the names of
        special tokens inside the text become those tokens; False takes them as ordinary text."""
        backend = self._backend if special else self._literal_backend()
        text = _whole_characters(text)
        if len(text) <= LONG_TEXT:
            return list(backend.encode(text, add_special_tokens=add_special_tokens).ids)
        return list(backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def _literal_backend(self) -> tokenizers.Tokenizer:
        """encode_special_tokens is a switch of the object: were it flipped around each call, a long text in one thread
        would hold up all others for its seconds."""
        with self._lock:
            if self._literal is None:
                copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
                copy.encode_special_tokens = True
                self._literal = copy
            return self._literal

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; ids outside of the vocabulary count as nothing, bytes that are no UTF-8 as U+FFFD.

        Equal to the tokenizers library but for one case: in a SentencePiece run of byte tokens that is not UTF-8 as a
        whole the library replaces every byte of the run; here the valid part survives, so that a stream can show it.
        """
        if self.kind is DecoderKind.OTHER:
            return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))
        table = self.visible_bytes() if skip_special_tokens else self.all_bytes()
        size = len(table)
        text = b"".join([table[i] for i in ids if 0 <= i < size]).decode("utf-8", "replace")
        return text[1:] if self.kind is DecoderKind.SENTENCEPIECE_STRIP and text.startswith(" ") else text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for inside a text; empty for an id without a token."""
        table = self.all_bytes()
        return table[token_id] if 0 <= token_id < len(table) else b""

    def token_text(self, token_id: int) -> str:
        """A token's own text, a special one's name included, as logprobs show it: ` the` keeps its space, and a part of
        a character is U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`); None for an id without a token."""
        if token_id < 0:
            return None
        token: str | None = self._backend.id_to_token(token_id)
        return token

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def is_special(self, token_id: int) -> bool:
        """Whether skip_special_tokens hides this id."""
        token = self._added.get(token_id)
        return token is not None and bool(token.special)

    def all_bytes(self) -> list[bytes]:
        """Bytes by id, special tokens as their names; built on first use. Not to be changed."""
        if self._bytes is None:
            self._bytes = byte_table(self._backend, self.kind)
        return self._bytes

    def visible_bytes(self) -> list[bytes]:
        """The same with special tokens empty."""
        if self._visible is None:
            table = list(self.all_bytes())
            for id_, token in self._added.items():
                if token.special:
                    table[id_] = b""
            self._visible = table
        return self._visible


def _whole_characters(text: str) -> str:
    """JSON's \\ud800 may put half a character into a string, which is no text: it counts as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _read_json(file: Path) -> dict[str, Any]:
    """An optional file's object; {} where there is none."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}", path=str(file)) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no JSON object.", path=str(file))
    return value


def _add_configured_tokens(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], special_map: Mapping[str, Any]
) -> dict[str, str]:
    """Adds the tokens that tokenizer_config.json names and tokenizer.json lacks; returns the named special tokens."""
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


def _set_template(backend: tokenizers.Tokenizer, special: Mapping[str, str], add_bos: bool, add_eos: bool) -> None:
    """What add_special_tokens puts around a sequence, where the files state it by flag."""
    ends = [special.get("bos_token") if add_bos else None, special.get("eos_token") if add_eos else None]
    used = [(token, backend.token_to_id(token)) for token in ends if token is not None]
    if any(id_ is None for _, id_ in used):
        raise CheckpointError(f"bos_token or eos_token is not in the vocabulary: {[token for token, _ in used]}.")
    single = [ends[0], "$A", ends[1]]
    # The pieces go in as a list: a token's text may hold spaces or colons.
    backend.post_processor = processors.TemplateProcessing(
        single=[piece for piece in single if piece is not None],
        pair=[piece for piece in (*single, ends[0], "$B:1", ends[1]) if piece is not None],
        special_tokens=list(dict(used).items()),
    )


def _folder_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """chat_template.jinja and additional_chat_templates/ before chat_template.json before tokenizer_config.json."""
    templates: dict[str, str] = {}
    for source in (config, _read_json(folder / "chat_template.json")):
        value = source.get("chat_template")
        if isinstance(value, str):
            templates["default"] = value
        elif isinstance(value, list):
            templates.update({item["name"]: item["template"] for item in value})
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    main = folder / "chat_template.jinja"
    if main.is_file():
        templates["default"] = main.read_text(encoding="utf-8")
    return templates


def _token_at(backend: tokenizers.Tokenizer, metadata: Mapping[str, Any], key: str) -> str | None:
    id_ = metadata.get(key)
    if id_ is None:
        return None
    token: str | None = backend.id_to_token(id_) if isinstance(id_, int) and 0 <= id_ < 2**31 else None
    if token is None:
        raise CheckpointError(f"{key} is {id_!r:.60}, which is no token of the vocabulary.", key=key)
    return token


def _id_list(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(item) for item in value] if isinstance(value, list) else [int(value)]


def _unique(ids: Iterable[int | None]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(id_ for id_ in ids if id_ is not None))
