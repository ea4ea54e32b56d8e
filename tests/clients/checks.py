"""What the scripts of this folder share: checks that are told one a line, as `ok NAME` or `failed NAME: why`.

A script runs in the environment of its client, which has nothing of ours; the runner (run.py) reads its lines.
"""

import asyncio
import inspect
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

URL = os.environ["OCTAVO_URL"]  # http://127.0.0.1:PORT
MODEL = os.environ["OCTAVO_MODEL"]
HELLO = [{"role": "user", "content": "Say hello to my cat."}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}


def check(function):
    """Run a check now, and tell how it went."""
    name = function.__name__
    try:
        made = function()
        if inspect.iscoroutine(made):
            asyncio.run(made)
    except Exception as error:
        traceback.print_exc()
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        print(f"failed {name}: {why}", flush=True)
    else:
        print(f"ok {name}", flush=True)
    return function


def ran(*words, cwd, env=None, seconds=900):
    """What a command says on its standard output; it must end well."""
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds, input=""
    )
    if done.returncode:
        sys.stderr.write(done.stdout[-3000:] + done.stderr[-3000:])
    said = (done.stderr or done.stdout).strip()
    assert done.returncode == 0, f"exit {done.returncode}: {said[-150:]}"
    return done.stdout


def launched(name, *words, cwd, env=None):
    """The same of `octavo launch`, which finds the client's program by the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    octavo = json.loads(os.environ["OCTAVO_LAUNCH"])
    return ran(*octavo, "--url", URL, name, *words, cwd=cwd, env={"HOME": str(cwd), **(env or {}), "PATH": path})
