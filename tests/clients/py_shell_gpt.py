"""shell-gpt: a question on the command line."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import MODEL, URL, check, launched

HOME = tempfile.mkdtemp()
ENVIRONMENT = {
    **os.environ, "HOME": HOME, "API_BASE_URL": URL + "/v1", "DEFAULT_MODEL": MODEL, "OPENAI_API_KEY": "none",
    "USE_LITELLM": "false", "PRETTIFY_MARKDOWN": "false",
}  # fmt: skip


def sgpt(*words):
    command = [str(Path(sys.executable).with_name("sgpt")), "--no-cache", *words]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, input="")
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


@check
def question():
    assert sgpt("Say only: hi").strip()


@check
def launch():
    assert launched("sgpt", "--no-cache", "Say only: hi", cwd=HOME, env={"PRETTIFY_MARKDOWN": "false"}).strip()
