"""Every sampling parameter once: default, range, meaning and, where it has one, its column of the slot table.

`SamplingParams` takes vLLM's names and defaults, refuses what is out of range by name, and normalises what it keeps.
`PARAMETERS` is read off its fields; docs and the HTTP bodies are made from it. It knows neither the sampler
(ops/sample.py, native/kernels/sample.cc) nor the tokenizer: `check_vocabulary` takes the number of ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast

from octavo.errors import InvalidRequest
from octavo.parameter import ID_END, Kind, Parameter, biases, ids, items, number, shown, switch, texts, whole
from octavo.structured_outputs import StructuredOutputsParams, structured_outputs

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20  # this and the next three bounds are those of the slot table (execution/layout.py)
MAX_STOP_TOKEN_IDS = 48  # of 64 columns; the others are left to the model's own end ids
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORD_IDS = 1024  # length, ids, length, ids, ..., 0
MAX_STOP_STRINGS = 16
MAX_BREAKERS = 64
# Samplers by llama.cpp's names, with their codes in a chain of the slot table; the last three end one.
SAMPLER_CODES = {
    "penalties": 1, "dry": 2, "top_n_sigma": 3, "top_k": 4, "typ_p": 5, "top_p": 6, "min_p": 7, "xtc": 8,
    "temperature": 9, "mirostat": 10, "mirostat_v2": 11, "pick": 12,
}  # fmt: skip
SAMPLERS = tuple(SAMPLER_CODES)[:9]
# Where nobody orders them. It means what vLLM's order does for vLLM's parameters; what costs least stands first.
DEFAULT_ORDER = ("penalties", "dry", "top_n_sigma", "top_k", "temperature", "min_p", "typ_p", "top_p", "xtc")
_CHANGES = ("penalties", "dry")
MIN_TEMPERATURE = 0.01  # as in vLLM: a temperature above 0 but below this becomes this

T = TypeVar("T")


def _parameter(
    default: T, kind: Kind, meaning: str, *, column: str | None = None, scalar: bool = False, factory: Any = None
) -> T:
    made = Parameter("", default, kind, meaning, column, scalar)
    if factory is not None:
        return cast(T, field(default_factory=factory, metadata={"parameter": made}))
    return field(default=default, metadata={"parameter": made})


def names() -> Kind:
    """An order of samplers: a list, or a text with ';' between the names. None: the default order."""

    def read(value: Any) -> tuple[str, ...] | None:
        if value is None:
            return None
        if isinstance(value, str):
            value = [name.strip() for name in value.split(";") if name.strip()]
        spelled = {"temp": "temperature", "typical_p": "typ_p", "top_nsigma": "top_n_sigma"}
        made = tuple(spelled.get(each, each) for each in items(value, len(SAMPLERS)) if isinstance(each, str))
        if len(set(made)) != len(value) or not set(made) <= set(SAMPLERS):
            raise ValueError(value)
        return made

    return Kind(f"a list, or a text with ';' between, of some of {', '.join(SAMPLERS)}, each once", read, True)


# fmt: off
@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen and when it ends. Values out of range raise InvalidRequest(param=name).

    None means the default wherever it is not itself a value. Kept values are normalised: `stop`, `stop_token_ids` and
    `bad_words` are tuples, `logit_bias` a dict, `top_k` -1 is 0, `seed` -1 is None.
    """

    n: int = _parameter(
        1, whole(1, MAX_CHOICES), "how many answers; each has its own random numbers", column="choice")
    best_of: int | None = _parameter(
        None, whole(1, MAX_CHOICES, none="n"), "make this many answers and give back the n of the highest mean "
        "log-probability a token; nothing comes before all are there")
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
        0, whole(0, ID_END - 1, synonyms={-1: 0}), "keep this many of the most likely ids; 0 or -1: off",
        column="top_k", scalar=True)
    min_p: float = _parameter(
        0.0, number(0, 1), "drop ids less likely than this share of the most likely one; 0: off",
        column="min_p", scalar=True)
    typical_p: float = _parameter(
        1.0, number(0, 1, above=True),
        "keep the ids whose surprise is nearest to the mean one until their probability reaches it; 1: off",
        column="typical_p", scalar=True)
    top_n_sigma: float = _parameter(
        0.0, number(-1, 100), "keep the logits that are at most this many standard deviations below the greatest; "
        "0 or less: off", column="top_n_sigma", scalar=True)
    xtc_probability: float = _parameter(
        0.0, number(0, 1), "how often all ids but the least likely of those that reach xtc_threshold are dropped; "
        "0: never", column="xtc_probability", scalar=True)
    xtc_threshold: float = _parameter(
        0.1, number(0, 1), "the probability that makes an id a top choice for XTC; above 0.5: off",
        column="xtc_threshold", scalar=True)
    dynatemp_range: float = _parameter(
        0.0, number(0, 1000), "the entropy chooses a temperature up to this far below and above the one given; 0: off",
        column="dynatemp_range", scalar=True)
    dynatemp_exponent: float = _parameter(
        1.0, number(0, 100), "power of the normalised entropy in dynatemp_range",
        column="dynatemp_exponent", scalar=True)
    mirostat: int = _parameter(
        0, whole(0, 2), "1 or 2: that version of Mirostat keeps the answer's surprise at mirostat_tau, in the place of "
        "every sampler but penalties, dry and temperature", column="mu")
    mirostat_tau: float = _parameter(
        5.0, number(0, 100), "the surprise that Mirostat aims at, in bits", column="mirostat_tau", scalar=True)
    mirostat_eta: float = _parameter(
        0.1, number(0, 10), "how fast Mirostat learns", column="mirostat_eta", scalar=True)
    repeat_last_n: int = _parameter(
        -1, whole(-1, ID_END - 1), "the three penalties look at this many of the last ids; -1: all, 0: none",
        column="repeat_last_n", scalar=True)
    dry_multiplier: float = _parameter(
        0.0, number(0, 1000), "an id that would lengthen a repetition of n ids of the answer costs dry_multiplier * "
        "dry_base^(n - dry_allowed_length), the power at most 64; the prompt does not count, unlike in llama.cpp; "
        "0: off", column="dry_multiplier", scalar=True)
    dry_base: float = _parameter(
        1.75, number(1, 100), "see dry_multiplier", column="dry_base", scalar=True)
    dry_allowed_length: int = _parameter(
        2, whole(1, ID_END - 1), "the shortest repetition that costs", column="dry_allowed_length", scalar=True)
    dry_penalty_last_n: int = _parameter(
        -1, whole(-1, ID_END - 1), "DRY looks at this many of the last ids of the answer; -1: all, 0: none",
        column="dry_penalty_last_n", scalar=True)
    dry_sequence_breakers: Sequence[str] = _parameter(
        ("\n", ":", '"', "*"), texts(MAX_BREAKERS), "no repetition goes on over an id whose text has one of these; a "
        "string that is in no id's text stands for its last id", column="breaker")
    samplers: Sequence[str] | None = _parameter(
        None, names(), "these samplers and no others, in this order, under llama.cpp's names; null: "
        + ", ".join(DEFAULT_ORDER), column="chain")
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
        16, whole(1, ID_END - 1, none="to the end of the context"), "at most this many ids are made",
        column="length_limit")
    min_tokens: int = _parameter(
        0, whole(0, ID_END - 1), "end ids are forbidden before this many ids are made", column="min_known")
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
    structured_outputs: StructuredOutputsParams | None = _parameter(
        None, structured_outputs(), "what the answer must look like, see structured-output.md")
    grammar_close: bool = _parameter(
        False, switch(), "an answer under structured_outputs that comes near max_tokens, or the end of the context, is "
        "led to its end in time")
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
                    f"{each.name} must be {each.kind.expects}, got {shown(value)}.", param=each.name
                ) from None
            object.__setattr__(self, each.name, kept)
        if self.top_n_sigma < 0:
            object.__setattr__(self, "top_n_sigma", 0.0)
        if 0 < self.temperature < MIN_TEMPERATURE:
            object.__setattr__(self, "temperature", MIN_TEMPERATURE)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}.", param="min_tokens"
            )
        if self.best_of is not None and self.best_of < self.n:
            raise InvalidRequest(f"best_of must be at least n ({self.n}), got {self.best_of}.", param="best_of")
        if self.stop and not self.detokenize:
            raise InvalidRequest("stop needs text: set detokenize, or use stop_token_ids.", param="stop")

    @property
    def greedy(self) -> bool:
        """Whether the most likely id is taken; the random parameters then have no effect."""
        return self.temperature == 0

    def chain(self) -> tuple[int, ...]:
        """Codes of the samplers in their order; empty where the sampler's usual way does the same for less."""
        penalties = self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        on = {
            "penalties": penalties and self.repeat_last_n != 0,
            "dry": self.dry_multiplier > 0 and self.dry_penalty_last_n != 0,
            "top_n_sigma": self.top_n_sigma > 0,
            "top_k": self.top_k > 0,
            "typ_p": self.typical_p < 1,
            "top_p": self.top_p < 1,
            "min_p": self.min_p > 0,
            "xtc": self.xtc_probability > 0 and self.xtc_threshold <= 0.5,
            "temperature": self.temperature != 1 or self.dynatemp_range > 0,
        }
        special = on["dry"] or on["top_n_sigma"] or on["typ_p"] or on["xtc"] or self.dynatemp_range > 0 or self.mirostat
        if self.samplers is None and not (special and not self.greedy) and not on["dry"]:
            return ()
        kept = [name for name in (DEFAULT_ORDER if self.samplers is None else self.samplers) if on[name]]
        end = "pick"
        if self.greedy:
            kept = [name for name in kept if name in _CHANGES]
        elif self.mirostat:
            kept = [name for name in kept if name in (*_CHANGES, "temperature")]
            end = "mirostat" if self.mirostat == 1 else "mirostat_v2"
        return tuple(SAMPLER_CODES[name] for name in (*kept, end))

    @property
    def stateful(self) -> bool:
        """Whether the sampler has a state that the ids do not tell: Mirostat's mu."""
        return self.mirostat > 0 and not self.greedy

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


def _declared() -> tuple[Parameter, ...]:
    found = ((each.name, cast(Parameter, each.metadata["parameter"])) for each in fields(SamplingParams))
    return tuple(
        Parameter(name, made.default, made.kind, made.meaning, made.column, made.scalar) for name, made in found
    )


PARAMETERS: tuple[Parameter, ...] = _declared()
