"""What is written down when an engine has died: the step, its requests, the signal, where native code stood.

A file of JSON in the state folder that only this user reads. Requests are told by digests and sizes; their token ids
only where the operator asked for it, and texts of parameters never. It knows no process.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from octavo import __version__
from octavo.engine.flight_record import Flight, request_digest
from octavo.request import Request
from octavo.sampling_params import SamplingParams

MOST_REPORTS = 20  # kept; the oldest ones go


def crash_report(
    reason: str, code: int | None, stack: str, flight: Flight, engine: Mapping[str, Any],
    members: Sequence[tuple[Request, list[int]]], *, guilty: str | None, prompts: bool,
) -> dict[str, Any]:  # fmt: skip
    """reason: in words, with the trace of an exception behind it. code: as subprocess has it. stack: of Python, when a
    signal came from inside. engine: what is known of the process. members: of the last step, with what each choice of
    them had given. prompts: their token ids stand in the report."""
    return {
        "octavo": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "reason": reason.partition("\n")[0],
        "signal": signal.Signals(-code).name if code is not None and -code in set(signal.Signals) else None,
        "exit_code": code if code is not None and code >= 0 else None,
        **engine,
        "step": {
            "number": flight.step,
            "running": flight.busy,
            "native_nodes_begun": flight.nodes,  # of all Programs and loops of the step, in their order
            "predicted_node_seconds": flight.node_seconds,
            "members": len(flight.members),
        },
        "refused": None if guilty is None else _digest(guilty),
        "requests": [_member(request, given, prompts) for request, given in members],
        "trace": reason.partition("\n")[2].splitlines(),
        "stack": stack.splitlines(),
    }


def _digest(request_id: str) -> str:
    return f"{request_digest(request_id):016x}"


def _member(request: Request, given: list[int], prompts: bool) -> dict[str, Any]:
    told = {name: value for name, value in _numbers(request.params).items()}
    return {
        "digest": _digest(request.request_id),
        "prompt_tokens": len(request.prompt_ids),
        "prompt": list(request.prompt_ids) if prompts else "redacted (--crash-prompts)",
        "given": given,
        "seed": request.seed,
        "params": told,
    }


def _numbers(params: SamplingParams) -> dict[str, bool | int | float]:
    """Parameters that are not at their default and say nothing of the text."""
    given = {each.name: getattr(params, each.name) for each in fields(params) if each.name != "seed"}
    plain = SamplingParams()
    return {
        name: value
        for name, value in given.items()
        if isinstance(value, bool | int | float) and value != getattr(plain, name)
    }


def write_report(folder: Path, report: Mapping[str, Any]) -> Path | None:
    """The file's path; None where it cannot be written: a full disk must not keep the next engine from starting."""
    path = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{report['epoch']}-{os.getpid()}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(msgspec.json.format(msgspec.json.encode(report), indent=1))
        for old in sorted(folder.glob("crash-*.json"))[:-MOST_REPORTS]:
            old.unlink(missing_ok=True)
    except OSError:
        return None
    return path
