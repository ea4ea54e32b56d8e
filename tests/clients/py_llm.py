"""The `llm` command with an OpenAI-compatible model of its own configuration, and through its plugin for Ollama."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import MODEL, URL, check, launched

FOLDER = Path(tempfile.mkdtemp())
(FOLDER / "extra-openai-models.yaml").write_text(
    f"- model_id: octavo\n  model_name: {MODEL}\n  api_base: {URL}/v1\n  api_key_name: octavo\n"
)
ENVIRONMENT = {**os.environ, "LLM_USER_PATH": str(FOLDER), "OLLAMA_HOST": URL}


def llm(*words):
    command = [sys.executable, "-m", "llm", *words]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@check
def prompt():
    assert llm("-m", "octavo", "--key", "none", "-o", "max_tokens", "16", "Say hello.").strip()
    assert llm("-m", "octavo", "--key", "none", "-o", "max_tokens", "16", "--no-stream", "Say hello.").strip()


@check
def ollama():
    assert f"ollama/{MODEL}:latest" in llm("models")
    assert llm("-m", f"ollama/{MODEL}", "-o", "num_predict", "16", "Say hello.").strip()


@check
def launch():
    assert launched("llm", "-o", "max_tokens", "16", "Say hello.", cwd=tempfile.mkdtemp()).strip()
