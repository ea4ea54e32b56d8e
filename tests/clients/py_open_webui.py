"""Open WebUI, without its pages: its server asks ours for models, and passes chats on over both of its protocols."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from checks import HELLO, MODEL, URL, check

FOLDER = Path(tempfile.mkdtemp())
LOG = FOLDER / "log"
OFFLINE = {
    "HOME": str(FOLDER), "DATA_DIR": str(FOLDER / "data"), "WEBUI_SECRET_KEY": "none", "WEBUI_AUTH": "False",
    "OFFLINE_MODE": "True", "HF_HUB_OFFLINE": "1", "RAG_EMBEDDING_ENGINE": "openai", "SCARF_NO_ANALYTICS": "true",
    "DO_NOT_TRACK": "true", "ANONYMIZED_TELEMETRY": "false", "ENABLE_PERSISTENT_CONFIG": "False",
    "CORS_ALLOW_ORIGIN": "http://127.0.0.1",
}  # fmt: skip
OPEN_AI = {"OPENAI_API_BASE_URL": URL + "/v1", "OPENAI_API_KEY": "none", "ENABLE_OLLAMA_API": "False"}
OLLAMA = {"ENABLE_OPENAI_API": "False", "OLLAMA_BASE_URL": URL, "ENABLE_OLLAMA_API": "True"}
PROGRAM = str(Path(sys.executable).with_name("open-webui"))


class WebUI:
    """A server of it, until the end of a `with`."""

    def __init__(self, command, environment):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        path = f"{Path(PROGRAM).parent}{os.pathsep}{os.environ['PATH']}"
        self.token = ""
        with LOG.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)], cwd=FOLDER, stdout=log, stderr=log,
                env={**os.environ, **OFFLINE, **environment, "PATH": path},
            )  # fmt: skip

    def __enter__(self):
        end = time.monotonic() + 240
        while True:
            try:
                self.ask("/health")
                break
            except (urllib.error.URLError, ConnectionError):
                assert self.process.poll() is None and time.monotonic() < end, LOG.read_text()[-1500:]
                time.sleep(1)
        self.token = json.loads(self.ask("/api/v1/auths/signin", {"email": "", "password": ""}))["token"]
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)

    def ask(self, path, body=None):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read().decode()

    def right(self, model):
        """The model is listed; a chat is answered whole and in a stream."""
        assert model in [each["id"] for each in json.loads(self.ask("/api/models"))["data"]]
        body = {"model": model, "messages": HELLO, "max_tokens": 16}
        whole = json.loads(self.ask("/api/chat/completions", {**body, "stream": False}))
        assert whole["choices"][0]["message"]["content"].strip()
        text = self.ask("/api/chat/completions", {**body, "stream": True})
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
        deltas = [choice["delta"] for line in lines for choice in json.loads(line).get("choices", ())]
        assert "".join(delta.get("content") or "" for delta in deltas).strip()


@check
def openai():
    with WebUI([PROGRAM, "serve"], OPEN_AI) as server:
        server.right(MODEL)


@check
def ollama():
    with WebUI([PROGRAM, "serve"], OLLAMA) as server:
        server.right(f"{MODEL}:latest")
        assert json.loads(server.ask("/ollama/api/version"))["version"]
        assert json.loads(server.ask("/ollama/api/ps")) is not None


@check
def launch():
    octavo = json.loads(os.environ["OCTAVO_LAUNCH"])
    with WebUI([*octavo, "--url", URL, "open-webui"], {}) as server:
        server.right(MODEL)
