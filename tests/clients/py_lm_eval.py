"""lm-evaluation-harness over /v1/completions: log probabilities of given answers, and answers until a stop."""

import json
import math
import os
import sys
import tempfile
from pathlib import Path

from checks import MODEL, URL, check, launched, ran

FOLDER = Path(tempfile.mkdtemp())
ROWS = [
    {"question": f"The capital of {country} is", "choices": [" " + town, " a kind of cheese"], "label": 0, "town": town}
    for country, town in (("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Japan", "Tokyo"))
]
COMMON = """dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/rows.jsonl}}
test_split: test
metadata: {{version: 1}}
"""
CHOICE = """task: octavo_choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """task: octavo_written
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{town}}"
generation_kwargs: {until: ["."], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
(FOLDER / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
for name, text in (("choice", CHOICE), ("written", WRITTEN)):
    (FOLDER / f"{name}.yaml").write_text(COMMON.format(folder=FOLDER) + text)
ENVIRONMENT = {
    "HOME": str(FOLDER), "OPENAI_API_KEY": "", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}  # fmt: skip
TASKS = ("--tasks", "octavo_choice,octavo_written", "--include_path", str(FOLDER), "--log_samples", "--output_path")


def results(out):
    """All samples of both tasks were answered; log probabilities are numbers below 0, and the right ones win."""
    (summary,) = out.rglob("results_*.json")
    made = json.loads(summary.read_text())["results"]
    assert made["octavo_choice"]["acc,none"] == 1.0, made
    samples = {}
    for file in out.rglob("samples_*.jsonl"):
        task = "octavo_choice" if "octavo_choice" in file.name else "octavo_written"
        samples[task] = [json.loads(line) for line in file.read_text().splitlines()]
    pairs = [float(each[0][0]) for sample in samples["octavo_choice"] for each in sample["resps"]]
    assert len(pairs) == 8 and all(value < 0 and math.isfinite(value) for value in pairs), pairs
    assert len(samples["octavo_written"]) == 4 and any(
        each["resps"][0][0].strip() for each in samples["octavo_written"]
    )
    return pairs


def evaluated(name, tokenizer):
    out = FOLDER / name
    facts = f"model={MODEL},base_url={URL}/v1/completions,{tokenizer},max_length=1024,num_concurrent=2"
    words = ("--model", "local-completions", "--model_args", facts, *TASKS, str(out))
    ran(Path(sys.executable).with_name("lm_eval"), *words, env=ENVIRONMENT, cwd=FOLDER)
    return results(out)


@check
def tokenizer_of_a_folder():
    evaluated("folder", f"tokenizer_backend=huggingface,tokenizer={os.environ['OCTAVO_TOKENIZER']}")


@check
def tokenizer_of_the_server():
    evaluated("server", "tokenizer_backend=remote")


@check
def launch():
    out = FOLDER / "launch"
    launched("lm-eval", *TASKS, str(out), cwd=FOLDER, env=ENVIRONMENT)
    results(out)
