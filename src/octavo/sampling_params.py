"""Every sampling parameter once: default, range, meaning and, where it has one, its column of the slot table.

`SamplingParams` takes vLLM's names and defaults, refuses what is out of range by name, and normalises what it keeps.
`PARAMETERS` is read off its fields; docs and the HTTP bodies are made from it. It knows neither the sampler
(ops/sample.py, native/kernels/sample.cc) nor the tokenizer: `check_vocabulary` takes the number of ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast

from octavo.errors import InvalidRequest

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20  # this and the next three bounds are those of the slot table (execution/layout.py)
MAX_STOP_TOKEN_IDS = 48  # of 64 columns; the others are left to the model's own end ids
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORD_IDS = 1024  # length, ids, length, ids, ..., 0
MAX_STOP_STRINGS = 16
MAX_TEXT = 1024  # characters of a stop string or a bad word
MIN_TEMPERATURE = 0.01  # as in vLLM: a temperature above 0 but below this becomes this

T = TypeVar("T")
_ID_END = 2**31  # ids are int32


@dataclass(frozen=True, slots=True)
class Kind:
    """What values a parameter takes: `read` gives the value to keep or raises ValueError; `expects` ends "must be"."""

    expects: str
    read: Callable[[Any], Any]
    nullable: bool = False  # None is a value of its own, not the default


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `column` names the field of SLOT_FIELDS that it fills; `scalar`: it is copied there as it is."""

    name: str
    default: object
    kind: Kind
    meaning: str
    column: str | None = None
    scalar: bool = False


def _parameter(
    default: T, kind: Kind, meaning: str, *, column: str | None = None, scalar: bool = False, factory: Any = None
) -> T:
    made = Parameter("", default, kind, meaning, column, scalar)
    if factory is not None:
        return cast(T, field(default_factory=factory, metadata={"parameter": made}))
    return field(default=default, metadata={"parameter": made})


def _whole(value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(value)
    return value


def whole(low: int, high: int, *, none: str = "", synonyms: Mapping[int, int | None] | None = None) -> Kind:
    """A whole number in [low, high]; `none` says what None means where it is a value; synonyms stand for others."""

    def read(value: Any) -> int | None:
        if none and value is None:
            return None
        if synonyms and type(value) is int and value in synonyms:
            return synonyms[value]
        return _whole(value, low, high)

    return Kind(f"a whole number from {low} to {high}" + (f", or null ({none})" if none else ""), read, bool(none))


def number(low: float, high: float, *, above: bool = False) -> Kind:
    """A finite number in [low, high], or in (low, high] if `above`."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(value)
        if not low <= value <= high or (above and value == low):  # a NaN compares false
            raise ValueError(value)
        return float(value)

    return Kind(f"a number above {low:g} and up to {high:g}" if above else f"a number from {low:g} to {high:g}", read)


def switch() -> Kind:
    """true or false, nothing that merely looks like it."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(value)
        return value

    return Kind("true or false", read)


def texts(most: int) -> Kind:
    """One string or a list of strings, none of them empty."""

    def read(value: Any) -> tuple[str, ...]:
        made = (value,) if isinstance(value, str) else _items(value, most)
        if not all(isinstance(each, str) and 0 < len(each) <= MAX_TEXT for each in made):
            raise ValueError(value)
        return tuple(made)

    return Kind(f"at most {most} strings of 1 to {MAX_TEXT} characters", read)


def ids(most: int, *, none: str = "") -> Kind:
    """A list of token ids; doubles are dropped, the order is kept."""

    def read(value: Any) -> tuple[int, ...] | None:
        if none and value is None:
            return None
        made = tuple(dict.fromkeys(_whole(each, 0, _ID_END - 1) for each in _items(value, most)))
        if none and not made:
            raise ValueError(value)  # an empty list of allowed ids would allow nothing
        return made

    if none:
        return Kind(f"1 to {most} token ids, or null ({none})", read, True)
    return Kind(f"at most {most} token ids", read)


def biases(most: int, bound: float) -> Kind:
    """A map of token ids (also as strings, as JSON has them) to biases."""

    def read(value: Any) -> dict[int, float]:
        if not isinstance(value, Mapping) or len(value) > most:
            raise ValueError(value)
        one = number(-bound, bound).read
        made = {}
        for key, bias in value.items():
            if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10:
                key = int(key)
            made[_whole(key, 0, _ID_END - 1)] = one(bias)
        return dict(sorted(made.items()))

    return Kind(f"a map of at most {most} token ids to numbers from {-bound:g} to {bound:g}", read)


def _items(value: Any, most: int) -> Sequence[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or len(value) > most:
        raise ValueError(value)
    return value


# fmt: off
@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen and when it ends. Values out of range raise InvalidRequest(param=name).

    None means the default wherever it is not itself a value. Kept values are normalised: `stop`, `stop_token_ids` and
    `bad_words` are tuples, `logit_bias` a dict, `top_k` -1 is 0, `seed` -1 is None.
    """

    n: int = _parameter(
        1, whole(1, MAX_CHOICES), "how many answers; each has its own random numbers", column="choice")
    presence_penalty: float = _parameter(
        0.0, number(-2, 2), "subtracted from the logit of every id that the answer contains",
        column="presence_penalty", scalar=True)
    frequency_penalty: float = _parameter(
        0.0, number(-2, 2), "subtracted once for every time that the answer contains the id",
        column="frequency_penalty", scalar=True)
    repetition_penalty: float = _parameter(
        1.0, number(0.01, 100), "ids of prompt and answer: positive logits are divided by it, others multiplied",
        column="repetition_penalty", scalar=True)
    temperature: float = _parameter(
        1.0, number(0, 1000), "logits are divided by it; 0: the most likely id; between 0 and 0.01 it is taken as 0.01",
        column="temperature", scalar=True)
    top_p: float = _parameter(
        1.0, number(0, 1, above=True), "keep the most likely ids until their probability reaches it; 1: off",
        column="top_p", scalar=True)
    top_k: int = _parameter(
        0, whole(0, _ID_END - 1, synonyms={-1: 0}), "keep this many of the most likely ids; 0 or -1: off",
        column="top_k", scalar=True)
    min_p: float = _parameter(
        0.0, number(0, 1), "drop ids less likely than this share of the most likely one; 0: off",
        column="min_p", scalar=True)
    seed: int | None = _parameter(
        None, whole(-(2**63), 2**64 - 1, none="a random one, returned with the answer", synonyms={-1: None}),
        "the same seed gives the same answer; negative ones are taken modulo 2^64; -1 is null", column="seed")
    stop: Sequence[str] = _parameter(
        (), texts(MAX_STOP_STRINGS), "strings that end the answer; they are not part of it")
    stop_token_ids: Sequence[int] = _parameter(
        (), ids(MAX_STOP_TOKEN_IDS), "ids that end the answer, beside the model's own", column="stop_id")
    bad_words: Sequence[str] = _parameter(
        (), texts(MAX_BAD_WORD_IDS // 2), "strings whose last id is forbidden where it would complete them",
        column="bad_word")
    ignore_eos: bool = _parameter(
        False, switch(), "go on after the model's end ids")
    max_tokens: int | None = _parameter(
        16, whole(1, _ID_END - 1, none="to the end of the context"), "at most this many ids are made",
        column="length_limit")
    min_tokens: int = _parameter(
        0, whole(0, _ID_END - 1), "end ids are forbidden before this many ids are made", column="min_known")
    logprobs: int | None = _parameter(
        None, whole(0, MAX_TOP_LOGPROBS, none="none"),
        "log-probabilities of the chosen id and of this many most likely ids, of the logits as the model made them",
        column="logprobs", scalar=True)
    prompt_logprobs: int | None = _parameter(
        None, whole(0, MAX_TOP_LOGPROBS, none="none"), "the same for every id of the prompt but the first")
    detokenize: bool = _parameter(
        True, switch(), "make text of the ids")
    skip_special_tokens: bool = _parameter(
        True, switch(), "leave special tokens out of the text")
    spaces_between_special_tokens: bool = _parameter(
        True, switch(), "put spaces between special tokens in the text")
    include_stop_str_in_output: bool = _parameter(
        False, switch(), "keep the stop string in the text")
    logit_bias: Mapping[int, float] = _parameter(
        cast(Mapping[int, float], {}), biases(MAX_LOGIT_BIAS, 100), "added to the logits of these ids",
        column="bias_id", factory=dict)
    allowed_token_ids: Sequence[int] | None = _parameter(
        None, ids(2**20, none="all"), "only these ids may be chosen", column="mask")
    # fmt: on

    def __post_init__(self) -> None:
        for each in PARAMETERS:
            value = getattr(self, each.name)
            if value is each.default:  # most are, and it is as it should be
                continue
            try:
                kept = each.kind.read(each.default if value is None and not each.kind.nullable else value)
            except (ValueError, OverflowError):
                raise InvalidRequest(
                    f"{each.name} must be {each.kind.expects}, got {_shown(value)}.", param=each.name
                ) from None
            object.__setattr__(self, each.name, kept)
        if 0 < self.temperature < MIN_TEMPERATURE:
            object.__setattr__(self, "temperature", MIN_TEMPERATURE)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}.", param="min_tokens"
            )
        if self.stop and not self.detokenize:
            raise InvalidRequest("stop needs text: set detokenize, or use stop_token_ids.", param="stop")

    @property
    def greedy(self) -> bool:
        """Whether the most likely id is taken; the random parameters then have no effect."""
        return self.temperature == 0

    def check_vocabulary(self, vocab_size: int) -> None:
        """InvalidRequest if an id of a parameter is not below `vocab_size`."""
        named: tuple[tuple[str, Iterable[int]], ...] = (
            ("stop_token_ids", self.stop_token_ids),
            ("logit_bias", self.logit_bias),
            ("allowed_token_ids", self.allowed_token_ids or ()),
        )
        for name, given in named:
            worst = max(given, default=0)
            if worst >= vocab_size:
                raise InvalidRequest(
                    f"{name} has the token id {worst}, but the vocabulary ends at {vocab_size - 1}.", param=name
                )

    def columns(self) -> dict[str, int | float]:
        """Column of the slot table → value, for the parameters that are copied there as they are (None is -1)."""
        made = {each.column: getattr(self, each.name) for each in PARAMETERS if each.scalar and each.column}
        return {column: -1 if value is None else value for column, value in made.items()}


def pack_bad_words(words: Iterable[Sequence[int]]) -> list[int]:
    """Ids of each bad word → the slot column `bad_word`: length, ids, length, ids, ..., 0. Empty words are left out."""
    packed = [number for word in words if word for number in (len(word), *word)] + [0]
    if len(packed) > MAX_BAD_WORD_IDS:
        raise InvalidRequest(
            f"bad_words make {len(packed)} ids with their lengths; at most {MAX_BAD_WORD_IDS} fit. Give fewer.",
            param="bad_words",
        )
    return packed


def _shown(value: object) -> str:
    """A refused value, short: it is the client's, and may be long or a number of a million digits."""
    if (value is None or isinstance(value, str | int | float)) and not (isinstance(value, int) and abs(value) >= 2**64):
        return repr(value[:40]) + "..." if isinstance(value, str) and len(value) > 40 else repr(value)
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}" if not isinstance(value, int) else "a number beyond 64 bits"


def _declared() -> tuple[Parameter, ...]:
    found = ((each.name, cast(Parameter, each.metadata["parameter"])) for each in fields(SamplingParams))
    return tuple(
        Parameter(name, made.default, made.kind, made.meaning, made.column, made.scalar) for name, made in found
    )


PARAMETERS: tuple[Parameter, ...] = _declared()
