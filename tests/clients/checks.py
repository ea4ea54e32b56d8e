"""What the scripts of this folder share: checks that are told one a line, as `ok NAME` or `failed NAME: why`.

A script runs in the environment of its client, which has nothing of ours; the runner (run.py) reads its lines.
"""

import asyncio
import inspect
import os
import traceback

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
