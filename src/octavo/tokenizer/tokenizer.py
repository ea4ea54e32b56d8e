"""Strings <-> ids: one face over a tokenizers.Tokenizer, with the bytes of every token and the special ids.

folder_tokenizer and gguf_tokenizer know the files; it does not know what a chat is (it only carries the templates'
text) nor how text is streamed (detokenizer).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.checkpoints.digest import remembered_digest
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.tokenizer import gguf_tokenizer
from octavo.tokenizer.byte_table import HEADED_KINDS, DecoderKind, byte_table, decoder_kind, head_bytes
from octavo.tokenizer.vocabulary import is_fault

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
        self._visible: dict[frozenset[str], list[bytes]] = {}
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
            tokenizer = cls.from_folder(checkpoint.path, cache_folder)
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
    def from_folder(cls, path: Path | str, cache_folder: Path | None = None) -> Tokenizer:
        """The tokenizer of a Hugging Face folder: its vocabulary file of whatever kind, tokenizer_config.json,
        generation_config.json and the chat template's files. Raises CheckpointError that names the file."""
        from octavo.tokenizer.folder_tokenizer import read_folder  # a GGUF needs none of it

        found = read_folder(Path(path), cache_folder)
        return cls(found.backend, TokenizerFacts(found.special, found.eos_ids, found.templates))

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
        special = gguf_tokenizer.special_tokens(backend, metadata)
        gguf_tokenizer.set_surroundings(backend, metadata, special)
        templates = {
            key.removeprefix("tokenizer.chat_template").removeprefix(".") or "default": value
            for key, value in metadata.items()
            if key.startswith("tokenizer.chat_template") and isinstance(value, str)
        }
        return cls(backend, TokenizerFacts(special, _unique(gguf_tokenizer.eos_ids(backend, metadata)), templates))

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
        try:
            if len(text) <= LONG_TEXT:
                return list(backend.encode(text, add_special_tokens=add_special_tokens).ids)
            return list(backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)
        except BaseException as error:
            if not is_fault(error):
                raise
            raise CheckpointError(f"the model's tokenizer cannot encode this text: {str(error)[:200]}") from error

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Ids of two texts with what the model puts around and between them, and the type id of each (0 or 1)."""
        found = self._backend.encode(_whole_characters(first), _whole_characters(second))
        return list(found.ids), list(found.type_ids)

    def _literal_backend(self) -> tokenizers.Tokenizer:
        """encode_special_tokens is a switch of the object: were it flipped around each call, a long text in one thread
        would hold up all others for its seconds."""
        with self._lock:
            if self._literal is None:
                copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
                copy.encode_special_tokens = True
                self._literal = copy
            return self._literal

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> str:
        """Text of `ids`; ids outside of the vocabulary count as nothing, bytes that are no UTF-8 as U+FFFD.

        spaces_between_special_tokens: matters only where tokens are joined by spaces (WordPiece).
        Equal to the tokenizers library but for one case: in a SentencePiece run of byte tokens that is not UTF-8 as a
        whole the library replaces every byte of the run; here the valid part survives, so that a stream can show it.
        """
        if self.kind is DecoderKind.OTHER:
            return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))
        table = self.visible_bytes() if skip_special_tokens else self.all_bytes()
        if self.kind in HEADED_KINDS:
            found, _ = self.join(ids, table, None, spaces_between_special_tokens)
            return found.decode("utf-8", "replace")
        size = len(table)
        text = b"".join([table[i] for i in ids if 0 <= i < size]).decode("utf-8", "replace")
        return text[1:] if self.kind is DecoderKind.SENTENCEPIECE_STRIP and text.startswith(" ") else text

    def join(
        self, ids: Sequence[int], table: Sequence[bytes], last: int | None, spaces_between: bool
    ) -> tuple[bytes, int | None]:
        """(bytes of `ids` behind the visible token `last`, the last visible token), under HEADED_KINDS."""
        size, found = len(table), []
        for id_ in ids:
            if not (0 <= id_ < size and table[id_]):
                continue
            if last is None or (not spaces_between and last in self._added and id_ in self._added):
                found.append(head_bytes(self.id_to_token(id_) or "", self.kind))
            else:
                found.append(table[id_])
            last = id_
        return b"".join(found), last

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

    def visible_bytes(self, shown: frozenset[str] = frozenset()) -> list[bytes]:
        """The same with special tokens empty, but for those inside of the texts `shown`. Not to be changed."""
        table = self._visible.get(shown)
        if table is None:
            table = list(self.all_bytes())
            for id_, token in self._added.items():
                ends = id_ in self.eos_ids
                if token.special and (ends or not any(token.content in text for text in shown)):
                    table[id_] = b""
            self._visible[shown] = table
        return table


def _whole_characters(text: str) -> str:
    """JSON's \\ud800 may put half a character into a string, which is no text: it counts as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _unique(ids: Iterable[int | None]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(id_ for id_ in ids if id_ is not None))
