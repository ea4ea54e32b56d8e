"""Fill in the middle: the ids of a prompt whose answer stands between two texts, with the tokens that the model has for
it.

What users write is taken literally: the name of a special token inside it stays text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.errors import InvalidRequest
from octavo.tokenizer.tokenizer import Tokenizer

SNIPPET = "\n\n--- snippet ---\n\n"  # before another file's text, for models without a token between files
_STOPS = ("<|endoftext|>", "<|fim_pad|>", "<|cursor|>", "<|end_of_text|>", "<EOT>", "▁<EOT>", "<|eot|>")


@dataclass(frozen=True)
class Markers:
    """Names of a family's tokens. suffix_first: the text behind stands before the text in front (Codestral). repo,
    file: what stands before the name of a repository and of a file; empty where there is nothing."""

    prefix: str
    suffix: str
    middle: str
    repo: str = ""
    file: str = ""
    suffix_first: bool = False


FAMILIES = (
    Markers("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>"),  # Qwen2.5-Coder
    Markers("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "", "<|file_separator|>"),  # CodeGemma
    Markers("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Granite 4
    Markers("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<repo_name>", "<file_sep>"),  # StarCoder2
    Markers("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<reponame>", "<filename>"),  # StarCoder, Granite code
    Markers("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    Markers("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Markers("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    Markers("<PRE>", "<SUF>", "<MID>"),
    Markers(
        "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"
    ),  # DeepSeek-Coder: what it calls hole stands before the suffix
    Markers("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM-4 and CodeGeeX
    Markers("[PREFIX]", "[SUFFIX]", "", suffix_first=True),  # Codestral
)


class FillIn:
    """The prompts of one model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises InvalidRequest for a model that has no tokens for it."""
        self._tokenizer = tokenizer
        found = next((each for each in FAMILIES if self._has(each)), None)
        if found is None:
            raise InvalidRequest(
                "this model cannot fill in the middle: it has no tokens for prefix and suffix. Leave out suffix.",
                param="suffix",
            )
        self.markers = found
        stops = [*_STOPS, found.repo, found.file, found.prefix, found.suffix, found.middle]
        known = [tokenizer.token_to_id(name) for name in stops if name]
        self.stop_ids = tuple(dict.fromkeys(id_ for id_ in known if id_ is not None))  # that end what is filled in

    def _has(self, markers: Markers) -> bool:
        names = (markers.prefix, markers.suffix, markers.middle, markers.repo, markers.file)
        return all(self._tokenizer.token_to_id(name) is not None for name in names if name)

    def ids(self, prefix: str, suffix: str, extra: Sequence[tuple[str, str]] = (), begun: str = "") -> list[int]:
        """The prompt. extra: names and texts of other files. begun: how the middle starts."""
        bos = self._tokenizer.bos_id if self._tokenizer.adds_bos else None
        made = [] if bos is None else [bos]
        made += self._context(extra)
        before = [*self._token(self.markers.prefix), *self._text(prefix)]
        behind = [*self._token(self.markers.suffix), *self._text(suffix)]
        made += [*behind, *before] if self.markers.suffix_first else [*before, *behind]
        return [*made, *self._token(self.markers.middle), *self._text(begun)]

    def _context(self, extra: Sequence[tuple[str, str]]) -> list[int]:
        if not extra:
            return []
        made = [*self._token(self.markers.repo), *self._text("project\n")] if self.markers.repo else []
        for name, text in extra:
            if self.markers.file:
                made += [*self._token(self.markers.file), *self._text(f"{name}\n{text}")]
            else:
                made += self._text(SNIPPET + text)
        if self.markers.file:
            made += [*self._token(self.markers.file), *self._text("filename\n")]
        return made

    def _token(self, name: str) -> list[int]:
        id_ = self._tokenizer.token_to_id(name) if name else None
        return [] if id_ is None else [id_]

    def _text(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, special=False) if text else []
