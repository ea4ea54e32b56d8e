"""guidellm: synthetic prompts with two streams at a time, over chat, completions and responses."""

import json
import os
import sys
import tempfile
from pathlib import Path

from checks import MODEL, URL, check, launched, ran

FOLDER = Path(tempfile.mkdtemp())
TOKENIZER = os.environ["OCTAVO_TOKENIZER"]
ENVIRONMENT = {"HOME": str(FOLDER), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
COUNT, TOKENS = 6, 8


def words(out):
    return (
        "--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={COUNT}",
        "--tokenizer", f"kind=hf_auto,model={TOKENIZER}",
        "--data", f"kind=synthetic_text,prompt_tokens=32,output_tokens={TOKENS}", "--disable-progress",
        "--output", f"kind=json,path={out}/benchmarks.json",
    )  # fmt: skip


def right(out):
    """Every request ended well, with as many tokens as were asked for."""
    (file,) = out.rglob("*.json")
    (benchmark,) = json.loads(file.read_text())["benchmarks"]
    done = benchmark["requests"]
    assert len(done["successful"]) == COUNT and not done["errored"], {name: len(each) for name, each in done.items()}
    assert all(each["output_metrics"]["total_tokens"] == TOKENS for each in done["successful"])


def measured(name, form):
    out = FOLDER / name
    out.mkdir()
    backend = f"kind=openai_http,target={URL},model={MODEL},request_format={form}"
    ran(
        Path(sys.executable).with_name("guidellm"),
        "run",
        "--backend",
        backend,
        *words(out),
        env=ENVIRONMENT,
        cwd=FOLDER,
    )
    right(out)


@check
def chat():
    measured("chat", "/v1/chat/completions")


@check
def completions():
    measured("completions", "/v1/completions")


@check
def responses():
    measured("responses", "/v1/responses")


@check
def launch():
    out = FOLDER / "launch"
    out.mkdir()
    launched("guidellm", *words(out), cwd=FOLDER, env=ENVIRONMENT)
    right(out)
