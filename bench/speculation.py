"""What speculation without a model gains and costs: the same answers with and without it, alternating in one run.

Edits of a code file (its text comes back with few changes), rewriting of JSON, and free text, one request at a time.
Prints tokens a second of both, ids a step, drafted and accepted ids, and the CPU. The answers must be equal.
It knows `LLM` alone; models come from the command line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass

from octavo import LLM, SamplingParams
from octavo.machine import read_machine

CODE = '''import csv
import io
from collections import defaultdict


class Ledger:
    """Entries of a small shop, by day and by customer."""

    def __init__(self, currency):
        self.currency = currency
        self.entries = []
        self.by_customer = defaultdict(list)

    def add_entry(self, day, customer, amount, note=""):
        if amount == 0:
            raise ValueError("an entry of nothing")
        entry = {"day": day, "customer": customer, "amount": amount, "note": note}
        self.entries.append(entry)
        self.by_customer[customer].append(entry)
        return entry

    def remove_entry(self, entry):
        self.entries.remove(entry)
        self.by_customer[entry["customer"]].remove(entry)

    def total(self, customer=None):
        found = self.entries if customer is None else self.by_customer[customer]
        return sum(entry["amount"] for entry in found)

    def days(self):
        return sorted({entry["day"] for entry in self.entries})

    def busiest_day(self):
        counts = defaultdict(int)
        for entry in self.entries:
            counts[entry["day"]] += 1
        return max(counts, key=counts.get) if counts else None

    def merge(self, other):
        if other.currency != self.currency:
            raise ValueError("ledgers of two currencies")
        for entry in other.entries:
            self.add_entry(entry["day"], entry["customer"], entry["amount"], entry["note"])

    def to_csv(self):
        out = io.StringIO()
        writer = csv.DictWriter(out, fieldnames=["day", "customer", "amount", "note"])
        writer.writeheader()
        for entry in self.entries:
            writer.writerow(entry)
        return out.getvalue()

    @classmethod
    def from_csv(cls, text, currency):
        ledger = cls(currency)
        for row in csv.DictReader(io.StringIO(text)):
            ledger.add_entry(row["day"], row["customer"], float(row["amount"]), row["note"])
        return ledger


def report(ledger):
    lines = [f"{len(ledger.entries)} entries on {len(ledger.days())} days"]
    for customer in sorted(ledger.by_customer):
        amount = ledger.total(customer)
        if amount > 0:
            lines.append(f"{customer} has paid {amount:.2f} {ledger.currency}")
        elif amount < 0:
            lines.append(f"{customer} was given back {-amount:.2f} {ledger.currency}")
    lines.append(f"in all {ledger.total():.2f} {ledger.currency}")
    return "\\n".join(lines)
'''

RECORDS = json.dumps(
    [
        {"id": 100 + i, "name": name, "address": {"city": city, "zip": f"{10_000 + 713 * i}"}, "tags": tags,
         "active": i % 3 != 0, "balance": round(17.35 * (i + 1), 2)}
        for i, (name, city, tags) in enumerate([
            ("Ada Moreau", "Lyon", ["vip"]), ("Jonas Weber", "Kiel", []), ("Mei Tanaka", "Osaka", ["new", "web"]),
            ("Omar Haddad", "Tunis", ["web"]), ("Lucia Rossi", "Turin", ["vip", "phone"]), ("Ivan Petrov", "Varna", []),
            ("Grace Obi", "Lagos", ["new"]), ("Noah Smith", "Leeds", ["phone"]),
        ])
    ],
    indent=2,
)  # fmt: skip

CODE_TASK = "Here is a Python file:\n\n```python\n{code}```\n\n{task} Give back the whole file, nothing else."
JSON_TASK = "Here is a JSON document:\n\n```json\n{records}\n```\n\n{task} Give back the whole document, nothing else."
TASKS: dict[str, dict[str, str]] = {
    "edit": {
        "rename": CODE_TASK.format(code=CODE, task="Rename the method `add_entry` to `record` everywhere."),
        "type hints": CODE_TASK.format(code=CODE, task="Add type hints to every function and method."),
    },
    "json": {
        "rename key": JSON_TASK.format(records=RECORDS, task='Rename the key "balance" to "credit" in every record.'),
        "add key": JSON_TASK.format(records=RECORDS, task='Add "country": null after every "city".'),
    },
    "free": {
        "story": "Write a story about a lighthouse keeper who finds a letter in a bottle.",
        "explain": "Explain how a bicycle stays upright, to someone who knows no physics.",
        "code": "Write a Python module that parses command lines with subcommands, without argparse, with tests.",
    },
}
# Free text gains little, so its turns are short: a shared host changes its speed by a third from one minute to the
# next, and a pair of answers with such a change between them says nothing.
MOST_TOKENS = {"edit": 900, "json": 1100, "free": 128}


@dataclass(frozen=True)
class Run:
    """One answer: its ids, seconds from the first id to the last, drafted and accepted ids, engine steps."""

    ids: tuple[int, ...]
    seconds: float
    drafted: int
    accepted: int
    steps: int

    @property
    def rate(self) -> float:
        return len(self.ids) / self.seconds


class Server:
    """A loaded model, and what its engine counted since it was last asked."""

    def __init__(self, model: str, method: str) -> None:
        self.llm = LLM(model, spec_method=method, max_model_len=4096, max_num_seqs=8, kv_cache_memory=512 << 20)
        self._seen = (0, 0, 0)

    def run(self, prompt: str, most: int, temperature: float) -> Run:
        """One answer. The prompt is in the prefix cache, so nearly all of the time is decoding."""
        self._answer(prompt, 1, temperature)
        self._counted()
        begin = time.perf_counter()
        ids = self._answer(prompt, most, temperature)
        return Run(ids, time.perf_counter() - begin, *self._counted())

    def _answer(self, prompt: str, most: int, temperature: float) -> tuple[int, ...]:
        params = SamplingParams(temperature=temperature, max_tokens=most, seed=1)
        made = self.llm.chat([{"role": "user", "content": prompt}], params, use_tqdm=False)
        return tuple(made[0].outputs[0].token_ids)

    def _counted(self) -> tuple[int, int, int]:
        stats = self.llm.stats()
        before, self._seen = self._seen, (stats.draft_tokens, stats.accepted_tokens, stats.steps)
        drafted, accepted, steps = (now - then for now, then in zip(self._seen, before, strict=True))
        return drafted, accepted, steps


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers with and without speculation, alternating.")
    parser.add_argument("--model", required=True, help="a file or a name")
    parser.add_argument("--method", default="suffix", choices=("ngram", "suffix"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--tokens", type=int, help="most ids of an answer, for a short run")
    args = parser.parse_args()
    plain, guessing = Server(args.model, "off"), Server(args.model, args.method)
    print(
        f"{args.model} on {read_machine().cpu_name}, {args.method} against plain decoding, medians of {args.rounds}\n"
    )
    print("| task | ids | plain tok/s | with tok/s | ratio | ids a step | accepted of drafted |")
    print("|---|---|---|---|---|---|---|")
    for kind in args.kinds:
        ratios = []
        for name, prompt in TASKS[kind].items():
            pairs = []
            for turn in range(args.rounds):  # who goes first alternates
                order = (plain, guessing) if turn % 2 == 0 else (guessing, plain)
                runs = {
                    id(each): each.run(prompt, args.tokens or MOST_TOKENS[kind], args.temperature) for each in order
                }
                pairs.append((runs[id(plain)], runs[id(guessing)]))
            if any(a.ids != b.ids for a, b in pairs):
                raise SystemExit(f"{kind}, {name}: the answer with speculation differs from the one without")
            ratio = statistics.median(b.rate / a.rate for a, b in pairs)
            ratios.append(ratio)
            a, b = (statistics.median(pair[i].rate for pair in pairs) for i in (0, 1))
            last = pairs[-1][1]
            print(
                f"| {kind}, {name} | {len(last.ids)} | {a:.1f} | {b:.1f} | {ratio:.2f} | "
                f"{len(last.ids) / last.steps:.2f} | {last.accepted} of {last.drafted} |",
                flush=True,
            )
        print(f"| {kind} | | | | {statistics.geometric_mean(ratios):.2f} | | |", flush=True)


if __name__ == "__main__":
    main()
