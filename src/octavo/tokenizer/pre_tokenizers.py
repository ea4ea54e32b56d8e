"""How each byte-level BPE family cuts text before merging: the table behind `tokenizer.ggml.pre`.

The names are those that llama.cpp writes and reads; the steps are those of the families' published tokenizer.json. It
knows patterns and the library's pre-tokenizers; it knows no vocabulary and no file.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers


class Step(enum.Enum):
    """Cuts that are no pattern of the family's own."""

    DIGITS = "every digit alone"
    DIGIT_RUNS = "runs of digits"
    PUNCTUATION = "every punctuation character alone"
    PUNCTUATION_RUNS = "runs of punctuation"
    GPT2 = "GPT-2's pattern, then bytes spelled as characters"


@dataclass(frozen=True)
class BytePre:
    """A family's way to cut.

    steps: one after the other, each inside the pieces of the one before; a string is a pattern whose matches are
    pieces. nfc: normalized to NFC first. whole_words: a piece that is a token is taken whole, without its merges.
    add_bos, add_sep: what the family puts around a sequence when the file does not say.
    """

    steps: tuple[str | Step, ...] = (Step.GPT2,)
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False
    add_sep: bool = False


def make_pre_tokenizer(pre: BytePre) -> pre_tokenizers.PreTokenizer:
    """The library's object; its last step at the latest spells bytes as characters."""
    made = [_make_step(step) for step in pre.steps]
    if Step.GPT2 not in pre.steps:
        made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(made)


def _make_step(step: str | Step) -> pre_tokenizers.PreTokenizer:
    if isinstance(step, str):
        return pre_tokenizers.Split(Regex(step), behavior="isolated", invert=False)
    if step is Step.GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if step in (Step.DIGITS, Step.DIGIT_RUNS):
        return pre_tokenizers.Digits(individual_digits=step is Step.DIGITS)
    return pre_tokenizers.Punctuation("isolated" if step is Step.PUNCTUATION else "contiguous")


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r"|\s*[\r\n]+"
_TAIL = r"|\s+(?!\S)|\s+"
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHER = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"


def _cased(end: str, number: str, lower: str = _LOWER, upper: str = _UPPER) -> str:
    """Words cut where lower case is followed by upper case; `end` may close a word."""
    first = r"[^\r\n\p{L}\p{N}]?"
    return rf"{first}{upper}*{lower}+{end}|{first}{upper}+{lower}*{end}|{number}"


QWEN2 = _CONTRACTIONS + _WORD + r"|\p{N}" + _OTHER + _LINES + _TAIL
LLAMA3 = _CONTRACTIONS + _WORD + r"|\p{N}{1,3}" + _OTHER + _LINES + _TAIL
TEKKEN = _cased("", r"\p{N}") + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _LINES + _TAIL
GPT4O = _cased(_CONTRACTIONS + "?", r"\p{N}{1,3}") + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _LINES + _TAIL
_YOUTU = _cased(_CONTRACTIONS + "?", r"\p{N}") + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _LINES + _TAIL
_QWEN35 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _LINES + _TAIL
_NOT_HAN = "&&[^\\p{Han}]]"
KIMI = (
    r"\p{Han}+|"
    + _cased(_CONTRACTIONS + "?", r"\p{N}{1,3}", _LOWER[:-1] + _NOT_HAN, _UPPER[:-1] + _NOT_HAN)
    + (_OTHER + _LINES + _TAIL)
)
_JAIS2_SPACES = "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|\s{1}"
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]" + _TAIL
_SEED = _CONTRACTIONS + _WORD + r"|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + _LINES + _TAIL
_EXAONE_WORD = r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+"
_EXAONE_MOE = _CONTRACTIONS + _EXAONE_WORD + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]" + _TAIL
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+"
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|"
    + _CJK
)
_DEEPSEEK3_WORDS = _ASCII_PUNCTUATION + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
_DEEPSEEK3 = (r"\p{N}{1,3}", _CJK, _DEEPSEEK3_WORDS + r"[\r\n]*" + _LINES + _TAIL)
_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
_DEEPSEEK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_DEEPSEEK_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

_DIGITS = BytePre((Step.DIGITS, Step.GPT2))
_LLAMA3_PRE = BytePre((LLAMA3,), whole_words=True, add_bos=True)
_QWEN2_PRE = BytePre((QWEN2,), nfc=True)
_GPT4O_PRE = BytePre((GPT4O,), whole_words=True)
_DEEPSEEK3_PRE = BytePre(_DEEPSEEK3)
_BAILING_PRE = BytePre((_BAILING,))
_CHAMELEON = (r"<sentinel:[0-9]+>", r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )")
# Digits in threes from the right. The published patterns look ahead to the end of a number without a bound: 20,000
# digits take 0.5 s (superbpe 3.2 s), four times as many sixteen times as long. Here at most 400 groups are looked at,
# once: 60,000 digits take 0.6 s. A number of over 1,200 digits is cut otherwise than by its family.
_AYA_PRE = BytePre((r"\d{1,3}(?=(?>(?:\d{3}){0,400})\b)", GPT4O))
_SUPERBPE = (r"\p{N}+", r"(?=(?>(?:\d{3}){1,400})(?!\d))")
_AFMOE = r"\p{N}{1,3}(?=(?>(?:\p{N}{3}){0,400})(?!\p{N}))"

# nfc stands where a family's tokenizer class or published file is known to normalize; llama.cpp never does.
BYTE_PRES: Mapping[str, BytePre] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"), BytePre()),
    **dict.fromkeys(("gigachat", "a.x-4.0", "mellum", "jais", "trillion", "granite-docling", "exaone4"), BytePre()),
    **dict.fromkeys(("mpt", "olmo", "modern-bert"), BytePre(nfc=True)),  # GPT-NeoX's tokenizer and its descendants
    **dict.fromkeys(("jina-v1-en", "jina-v2-code", "roberta-bpe"), BytePre(add_bos=True, add_sep=True)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS),
    "command-r": BytePre((Step.DIGITS, Step.GPT2), nfc=True),
    "falcon": BytePre((Step.PUNCTUATION_RUNS, Step.GPT2, Step.DIGIT_RUNS, "[0-9][0-9][0-9]")),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), _QWEN2_PRE),
    "qwen35": BytePre((_QWEN35,), nfc=True),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open", "grok-2"), BytePre((QWEN2,))),
    "ufakzeka": BytePre((QWEN2.removeprefix(_CONTRACTIONS + "|"),)),
    "laguna": BytePre((r"[^\n]+|[\n]+", QWEN2)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0"), _LLAMA3_PRE),
    **dict.fromkeys(("lfm2", "jina-v5-nano"), _LLAMA3_PRE),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), BytePre((LLAMA3,))),
    **dict.fromkeys(("glm4", "glm5"), BytePre((LLAMA3,), whole_words=True)),
    "jais-2": BytePre((LLAMA3.removesuffix(_TAIL) + _JAIS2_SPACES,)),
    "minicpm5": BytePre((r"\p{N}{1,3}", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")), whole_words=True),
    "tekken": BytePre((TEKKEN,), whole_words=True, add_bos=True),  # Mistral Nemo and later
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "granite-embed-multi-97m"), _GPT4O_PRE),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _AYA_PRE),
    "kimi-k2": BytePre((KIMI,), whole_words=True),
    "youtu": BytePre((_YOUTU_SCRIPTS, _YOUTU), whole_words=True),
    "deepseek-llm": BytePre((r"[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_PUNCTUATION, r"\s+$", _DEEPSEEK_HAN, Step.DIGITS)),
    "deepseek-coder": BytePre((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN, Step.DIGITS)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK3_PRE),
    "spark2_5": BytePre((r"\p{N}{1,3}", _CJK, _DEEPSEEK3_WORDS + r"|[\r\n]" + _TAIL, Step.DIGITS)),
    "afmoe": BytePre((_AFMOE, _AFMOE_SCRIPTS, _DEEPSEEK3[2])),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), BytePre((_BLOOM,))),
    "viking": BytePre((_BLOOM, Step.DIGITS)),
    "chameleon": BytePre((*_CHAMELEON, Step.DIGITS, Step.PUNCTUATION, Step.GPT2), add_bos=True),
    "superbpe": BytePre(_SUPERBPE),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING_PRE),
    "seed-coder": BytePre((_SEED,)),
    "exaone-moe": BytePre((_EXAONE_MOE,)),
}

# Byte-level in name only: SentencePiece's spelling under stated merges.
SENTENCEPIECE_PRES = frozenset({"gemma4", "granite-embed-multi-311m", "sarvam-moe"})
