"""aider: one message about a file, through both of its providers for a server of one's own, and by `octavo launch`."""

import sys
import tempfile
from pathlib import Path

from checks import MODEL, URL, check, launched, ran

FOLDER = Path(tempfile.mkdtemp())
(FOLDER / "hello.py").write_text("def hello():\n    return 'hi'\n")
ENVIRONMENT = {
    "HOME": str(FOLDER), "OPENAI_API_BASE": URL + "/v1", "OPENAI_API_KEY": "none", "OLLAMA_API_BASE": URL,
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}  # fmt: skip
WORDS = (
    "--no-git", "--yes-always", "--no-check-update", "--no-show-release-notes", "--no-show-model-warnings",
    "--no-analytics", "--no-pretty", "--no-fancy-input", "--no-suggest-shell-commands", "--no-detect-urls",
    "--edit-format", "whole", "--message", "Say in one short sentence what hello.py does. Change nothing.", "hello.py",
)  # fmt: skip


def answered(text):
    """It ends with 0 whatever happens; only an answer has a count of tokens."""
    assert "Tokens:" in text and "received" in text, text[-300:]
    assert "litellm." not in text, text[-300:]


@check
def openai():
    answered(
        ran(Path(sys.executable).with_name("aider"), "--model", f"openai/{MODEL}", *WORDS, env=ENVIRONMENT, cwd=FOLDER)
    )


@check
def openai_without_stream():
    words = ("--model", f"openai/{MODEL}", "--no-stream", *WORDS)
    answered(ran(Path(sys.executable).with_name("aider"), *words, env=ENVIRONMENT, cwd=FOLDER))


@check
def ollama():
    words = ("--model", f"ollama_chat/{MODEL}", *WORDS)
    answered(ran(Path(sys.executable).with_name("aider"), *words, env=ENVIRONMENT, cwd=FOLDER))


@check
def launch():
    answered(launched("aider", *WORDS, cwd=FOLDER))
