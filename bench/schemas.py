"""Structured output on a public collection of schemas: what is refused, whether answers are valid, what masks cost.

python bench/schemas.py FOLDER [--count 1000] [--model smollm2:135m] [--tokens 160] [--json FILE]

FOLDER: JSON schemas, one a file, in whatever folders (the `data` of guidance-ai/jsonschemabench). Each is asked for
twice, greedily and at temperature 1, 32 at a time; every answer that ended by itself is held against its schema by
`jsonschema`. An answer that is valid only if oneOf means anyOf is counted apart. Then masks are timed one by one on the
answers, and 32 constrained streams compared with 32 free ones of the same lengths.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
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
VALID, CUT, INVALID, ONE_OF, FAILED = (
    "valid",
    "cut off by its length",
    "INVALID",
    "valid but for oneOf",
    "ended by an error",
)


@dataclass
class Case:
    """A schema of the collection, and the texts that it gave."""

    file: Path
    schema: dict[str, Any]
    asked: StructuredOutputsParams
    answers: list[tuple[str, str, list[int]]] = field(default_factory=list)  # text, finish, ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="schemas that compile; 0: all")
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--tokens", type=int, default=160, help="of an answer at most")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()
    with LLM(given.model, max_num_seqs=STREAMS, max_model_len=1024) as llm:
        figures: dict[str, Any] = {"model": given.model}
        cases = accepted(llm, given.folder, given.count, figures)
        answer_all(llm, cases, given.tokens, figures)
        figures["masks"] = time_masks(given.model, llm, cases)
        figures["32 streams"] = compare(llm, cases)
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


def accepted(llm: LLM, folder: Path, count: int, figures: dict[str, Any]) -> list[Case]:
    """Schemas that compile, in an order that is the same each time; why others do not."""
    files = sorted(folder.rglob("*.json"))
    random.Random(20261129).shuffle(files)
    made: list[Case] = []
    refused: Counter[str] = Counter()
    looked = 0
    for start in range(0, len(files), STREAMS):
        if count and len(made) >= count:
            break
        some = []
        for file in files[start : start + STREAMS]:
            looked += 1
            try:
                schema = json.loads(file.read_text(encoding="utf-8"))
                some.append(Case(file, schema, StructuredOutputsParams(json=schema)))
            except InvalidRequest as error:
                refused[reason(error.message)] += 1
            except ValueError:
                refused["no JSON"] += 1
        for case, error in zip(some, outcomes(llm, some, SamplingParams(max_tokens=1)), strict=True):
            if error is None:
                made.append(case)
            else:
                refused[reason(error)] += 1
    figures["schemas looked at"] = looked
    figures["accepted"] = len(made)
    figures["refused"] = dict(refused.most_common())
    figures["refused share"] = round(sum(refused.values()) / looked, 4)
    return made


def reason(message: str) -> str:
    """Of a refusal, without what is the schema's own."""
    why = message.removeprefix("structured_outputs.json: ").rstrip(".")
    if "keywords" in why:
        return "keyword " + why.rpartition(": ")[2]
    if "bytes" in why:
        return "larger than 64 KiB"
    return why.split("'")[0].split('"')[0].partition("(")[0].strip()[:60]


def outcomes(llm: LLM, cases: list[Case], params: SamplingParams) -> list[str | None]:
    """Why each cannot be had; None: it can."""
    found: list[str | None] = []
    for case in cases:
        asked = SamplingParams(max_tokens=params.max_tokens, temperature=0, structured_outputs=case.asked)
        try:
            llm.chat(MESSAGES, asked, use_tqdm=False)
            found.append(None)
        except OctavoError as error:
            found.append(error.message)
    return found


def answer_all(llm: LLM, cases: list[Case], tokens: int, figures: dict[str, Any]) -> None:
    """Greedy and sampled answers of all, and what they are worth."""
    before, begin, made = llm.stats(), time.perf_counter(), 0
    judged: Counter[str] = Counter()
    invalid = []
    for sampled, how in enumerate(RUNS):
        for start in range(0, len(cases), STREAMS * 4):
            some = cases[start : start + STREAMS * 4]
            params = [
                SamplingParams(max_tokens=tokens, seed=at, structured_outputs=case.asked, **how)
                for at, case in enumerate(some, start)
            ]
            for case, (text, finish, ids) in zip(some, generate(llm, params), strict=True):
                case.answers.append((text, finish, ids))
                made += len(ids)
                verdict = judge(case.schema, text, finish)
                judged[f"{'sampled' if sampled else 'greedy'}: {verdict}"] += 1
                if verdict == INVALID:
                    invalid.append({"file": str(case.file), "text": text})
    after, seconds = llm.stats(), time.perf_counter() - begin
    figures["answers"] = dict(sorted(judged.items()))
    figures["invalid"] = invalid
    figures["tokens"] = made
    figures["tokens a second"] = round(made / seconds, 1)
    figures["mask time, share of the whole"] = round((after.mask_seconds - before.mask_seconds) / seconds, 4)


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
    """What an answer is worth, by a validator that has nothing to do with ours."""
    if finish != "stop":
        return CUT if finish == "length" else FAILED
    try:
        value = json.loads(text)
    except ValueError:
        return INVALID
    if holds(schema, value):
        return VALID
    return ONE_OF if holds(as_any_of(schema), value) else INVALID


def holds(schema: dict[str, Any], value: Any) -> bool:
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return bool(kind(schema).is_valid(value))


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
        for _, _, ids in case.answers:
            matcher = first.deep_copy()
            for token in ids:
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
    some = sorted(cases, key=lambda case: -len(case.answers[0][2]))[:STREAMS]
    lengths = [len(case.answers[0][2]) for case in some]
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
    main()
