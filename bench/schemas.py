"""Structured output on a public collection of schemas: what is refused, whether answers are valid, what masks cost.

python bench/schemas.py FOLDER [--count 1000] [--model smollm2:135m] [--tokens 160] [--state FILE] [--minutes 9]

FOLDER: JSON schemas, one a file, in whatever folders (the `data` of guidance-ai/jsonschemabench). Each is asked for
twice, greedily and at temperature 1, 32 at a time; every answer that ended by itself is held against its schema by
`jsonschema`. An answer that is valid only if oneOf means anyOf is counted apart. Then masks are timed one by one on the
answers, and 32 constrained streams compared with 32 free ones of the same lengths. With --state what came of each
schema is kept in a file of lines, and the same command goes on behind it; the exit code is 1 if an answer was wrong, 3
if some schemas are to come.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema_rs
import numpy as np

from octavo import LLM, SamplingParams, StructuredOutputsParams
from octavo.config import EngineConfig
from octavo.errors import InvalidRequest, OctavoError
from octavo.grammar.matcher import Compiler
from octavo.grammar.process import vocabulary_of
from octavo.start import find_model

STREAMS = 32
MESSAGES = [{"role": "user", "content": "Write one short example of what the schema asks for, as JSON."}]
RUNS = ({"temperature": 0.0}, {"temperature": 1.0})
VALID, ONE_SAYS, CUT, INVALID, ONE_OF, FAILED = (
    "valid",
    "valid by the second validator",
    "cut off by its length",
    "INVALID",
    "valid but for oneOf",
    "ended by an error",
)


@dataclass
class Answer:
    verdict: str
    text: str
    ids: list[int]


@dataclass
class Case:
    """A schema of the collection, why it is refused, and a greedy and a sampled answer to it where it is not."""

    file: Path
    schema: dict[str, Any]
    asked: StructuredOutputsParams | None
    refused: str | None = None
    answers: list[Answer] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="schemas that compile; 0: all")
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--tokens", type=int, default=160, help="of an answer at most")
    parser.add_argument("--minutes", type=float, default=1e9, help="no schema is begun later")
    parser.add_argument("--state", type=Path, help="what came of the schemas so far")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()
    looked = read_state(given.state) if given.state and given.state.exists() else []
    with LLM(given.model, max_num_seqs=STREAMS, max_model_len=1024) as llm:
        whole = go_on(llm, given, looked)
        figures = {"model": given.model, "tokens of an answer at most": given.tokens, **summary(looked)}
        if whole:
            cases = [each for each in looked if each.refused is None]
            figures["masks"] = time_masks(given.model, llm, cases)
            figures["32 streams"] = compare(llm, cases)
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    return 1 if figures["invalid"] else 0 if whole else 3


def read_state(file: Path) -> list[Case]:
    made = []
    for line in file.open(encoding="utf-8"):
        told = json.loads(line)
        schema = {} if told["refused"] else json.loads(Path(told["file"]).read_text(encoding="utf-8"))
        asked = None if told["refused"] else StructuredOutputsParams(json=schema)
        made.append(
            Case(Path(told["file"]), schema, asked, told["refused"], [Answer(*each) for each in told["answers"]])
        )
    return made


def go_on(llm: LLM, given: argparse.Namespace, looked: list[Case]) -> bool:
    """Schemas in an order of chance, the same each time, behind those that were looked at; whether these are enough."""
    end = time.monotonic() + given.minutes * 60
    files = sorted(given.folder.rglob("*.json"))
    random.Random(20261129).shuffle(files)
    known = {each.file for each in looked}
    left = [file for file in files if file not in known]
    while left and not enough(looked, given.count):
        if time.monotonic() > end:
            return False
        some = [opened(file) for file in left[: STREAMS * 2]]
        del left[: len(some)]
        for case in some:
            case.refused = case.refused or refusal(llm, case)
        answer_all(llm, [case for case in some if case.refused is None], given.tokens, len(looked))
        looked += some
        if given.state:
            with given.state.open("a", encoding="utf-8") as file:
                for case in some:
                    told = {"file": str(case.file), "refused": case.refused, "answers": map(astuple, case.answers)}
                    file.write(json.dumps({**told, "answers": list(told["answers"])}, ensure_ascii=False) + "\n")
        print(f"{len(looked)} looked at", file=sys.stderr, flush=True)
    return True


def enough(looked: list[Case], count: int) -> bool:
    return bool(count) and sum(each.refused is None for each in looked) >= count


def opened(file: Path) -> Case:
    """A schema of a file, refused where the request that brings it would be."""
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
        return Case(file, schema, StructuredOutputsParams(json=schema))
    except InvalidRequest as error:
        return Case(file, {}, None, error.message)
    except ValueError:
        return Case(file, {}, None, "no JSON")


def refusal(llm: LLM, case: Case) -> str | None:
    """Why it cannot be had; None: it can."""
    try:
        llm.chat(MESSAGES, SamplingParams(max_tokens=1, temperature=0, structured_outputs=case.asked), use_tqdm=False)
    except OctavoError as error:
        return error.message
    return None


def reason(message: str) -> str:
    """Of a refusal, without what is the schema's own."""
    why = message.removeprefix("structured_outputs.json: ").rstrip(".")
    if "keywords" in why:
        return "keyword " + why.rpartition(": ")[2]
    if "as it stands" in why:
        return "keyword " + why.partition(" is not")[0] + " as it stands there"
    if "bytes" in why:
        return "larger than 64 KiB"
    return why.split("'")[0].split('"')[0].partition("(")[0].strip()[:60]


def answer_all(llm: LLM, cases: list[Case], tokens: int, seed: int) -> None:
    """A greedy and a sampled answer of each, and what they are worth."""
    for how in RUNS:
        params = [
            SamplingParams(max_tokens=tokens, seed=at, structured_outputs=case.asked, **how)
            for at, case in enumerate(cases, seed)
        ]
        for case, (text, finish, ids) in zip(cases, generate(llm, params), strict=True):
            case.answers.append(Answer(judge(case.schema, text, finish), text, ids))


def summary(looked: list[Case]) -> dict[str, Any]:
    """What came of all."""
    refused = Counter(reason(each.refused) for each in looked if each.refused is not None)
    cases = [each for each in looked if each.refused is None]
    judged = Counter(
        f"{name}: {answer.verdict}"
        for each in cases
        for name, answer in zip(("greedy", "sampled"), each.answers, strict=True)
    )
    wrong = [(each, answer) for each in cases for answer in each.answers if answer.verdict in (INVALID, FAILED)]
    return {
        "schemas looked at": len(looked),
        "accepted": len(cases),
        "refused": dict(refused.most_common()),
        "refused share": round(sum(refused.values()) / max(1, len(looked)), 4),
        "answers": dict(sorted(judged.items())),
        "tokens": sum(len(answer.ids) for each in cases for answer in each.answers),
        "invalid": [{"file": str(each.file), "verdict": answer.verdict, "text": answer.text} for each, answer in wrong],
    }


def generate(llm: LLM, params: list[SamplingParams]) -> list[tuple[str, str, list[int]]]:
    """Text, finish and ids of each; all at once, and one by one where one of them fails."""
    try:
        return [told(output) for output in llm.chat([MESSAGES] * len(params), params, use_tqdm=False)]
    except OctavoError:
        made = []
        for each in params:
            try:
                made += [told(output) for output in llm.chat(MESSAGES, each, use_tqdm=False)]
            except OctavoError as error:
                made.append((error.message, "error", []))
        return made


def told(output: Any) -> tuple[str, str, list[int]]:
    choice = output.outputs[0]
    return choice.text, choice.finish_reason or "", choice.token_ids


def judge(schema: dict[str, Any], text: str, finish: str) -> str:
    """What an answer is worth, by validators that have nothing to do with ours."""
    if finish != "stop":
        return CUT if finish == "length" else FAILED
    try:
        value = json.loads(text)
    except ValueError:
        return INVALID
    if holds(schema, value):
        return VALID
    if holds_in_rust(schema, value):
        return ONE_SAYS
    return ONE_OF if holds(as_any_of(schema), value) else INVALID


def holds(schema: dict[str, Any], value: Any) -> bool:
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return bool(kind(schema).is_valid(value))


def holds_in_rust(schema: dict[str, Any], value: Any) -> bool:
    """By a second one, whose patterns are ECMA's as JSON Schema has them: Python's \\s takes control characters."""
    try:
        return bool(jsonschema_rs.is_valid(schema, value))
    except ValueError:  # it does not take the schema
        return False


def as_any_of(schema: Any) -> Any:
    """oneOf read as anyOf, as it is by us."""
    if isinstance(schema, list):
        return [as_any_of(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {"anyOf" if key == "oneOf" else key: as_any_of(value) for key, value in schema.items()}


def time_masks(model: str, llm: LLM, cases: list[Case]) -> dict[str, float]:
    """Microseconds to compile and of one mask with its id consumed, in this process, one after the other."""
    config = EngineConfig(model=model)
    vocabulary = llm.llm.info.vocab_size
    compiler = Compiler(vocabulary_of(find_model(config).path, config.cache_path, vocabulary))
    mask = np.zeros((vocabulary + 31) // 32, np.uint32)
    compiling, masking = [], []
    for case in cases:
        begin = time.perf_counter_ns()
        first = compiler.compile(case.asked)
        compiling.append(time.perf_counter_ns() - begin)
        for answer in case.answers:
            matcher = first.deep_copy()
            for token in answer.ids:
                begin = time.perf_counter_ns()
                matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
                matcher.consume_token(token)
                masking.append(time.perf_counter_ns() - begin)
    made = {f"compile {name} us": each for name, each in spread(compiling).items()}
    return made | {f"mask {name} us": each for name, each in spread(masking).items()}


def spread(nanoseconds: list[int]) -> dict[str, float]:
    p50, p99, most = np.percentile(nanoseconds, [50, 99, 100]) / 1e3
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "max": round(float(most), 1)}


def compare(llm: LLM, cases: list[Case]) -> dict[str, float]:
    """32 constrained streams against 32 free ones with as many tokens each; three turns, alternating."""
    some = sorted(cases, key=lambda case: -len(case.answers[0].ids))[:STREAMS]
    lengths = [len(case.answers[0].ids) for case in some]
    rates: dict[str, list[float]] = {"constrained": [], "free": []}
    shares = []
    for _ in range(3):
        for name in rates:
            params = [
                SamplingParams(
                    max_tokens=length, temperature=0, ignore_eos=name == "free",
                    structured_outputs=case.asked if name == "constrained" else None,
                )
                for case, length in zip(some, lengths, strict=True)
            ]  # fmt: skip
            before, begin = llm.stats(), time.perf_counter()
            made = sum(len(ids) for _, _, ids in generate(llm, params))
            after, seconds = llm.stats(), time.perf_counter() - begin
            rates[name].append(made / seconds)
            if name == "constrained":
                shares.append(
                    (after.mask_seconds - before.mask_seconds) / (after.native_seconds - before.native_seconds)
                )
    return {
        "constrained tokens a second": round(sorted(rates["constrained"])[1], 1),
        "free tokens a second": round(sorted(rates["free"])[1], 1),
        "mask time, share of the steps": round(sorted(shares)[1], 4),
    }


if __name__ == "__main__":
    sys.exit(main())
