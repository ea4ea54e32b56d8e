"""What runs in the engine's process: build, say hello, serve until told to end or left alone.

The boot record comes over standard input, so nothing of it shows in a list of processes. It knows the name of a factory
`module:function(options) -> EngineSetup`, not what it builds.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import msgspec

from octavo import logs
from octavo.engine import faults
from octavo.engine.core import EngineCore, EngineSetup
from octavo.engine.flight_record import FlightRecord
from octavo.engine.loop import EngineLoop, tune_interpreter
from octavo.engine.messages import Boot, Dead, ErrorRecord, Failed
from octavo.engine.transport import Peer, SocketPort
from octavo.errors import OctavoError

_PR_SET_PDEATHSIG = 1
FAREWELL_SECONDS = 10.0  # how long a failed start waits for the front to hear of it
LAST_WORDS_SECONDS = 0.1  # for the front to hear why the engine ends
TRACE_CHARACTERS = 8000  # of the end of an exception's trace, for the crash report


def main(record: dict[str, Any]) -> int:
    """Be an engine; the exit code. `record`: a Boot as JSON has it."""
    boot = msgspec.convert(record, Boot)
    # The front decides when to end: it drains first. An interrupt from the terminal reaches this process as well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != boot.parent:
        return 1  # the front died before prctl
    faulthandler.enable(boot.stack)
    logs.set_up(boot.log_level, json_lines=boot.log_json)
    faults.arm(boot.faults)
    port = SocketPort(Path(boot.socket))
    try:
        return _serve(boot, port)
    finally:
        port.close()


def _serve(boot: Boot, port: SocketPort) -> int:
    flight = FlightRecord(boot.members, boot.flight)
    try:
        faults.point("process.before_build")
        module, _, function = boot.factory.partition(":")
        setup: EngineSetup = getattr(importlib.import_module(module), function)(boot.options)
        core = EngineCore(setup, flight, boot.epoch)
    except OctavoError as error:
        _say_failed(port, Failed(boot.epoch, ErrorRecord.of(error)))
        return error.exit_code
    tune_interpreter()
    try:
        EngineLoop[Peer](core, port, flight).serve(lambda: os.getppid() == boot.parent)
    except Exception as error:
        logs.get("engine").exception("the engine ends")
        port.send_all(Dead(boot.epoch, f"{type(error).__name__}: {error}", traceback.format_exc()[-TRACE_CHARACTERS:]))
        # A connection that is closed with words of the front unread would take these with it.
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while time.monotonic() < deadline:
            port.receive(LAST_WORDS_SECONDS / 4)
        return 1
    finally:
        core.close()
    return 0


def _say_failed(port: SocketPort, failed: Failed) -> None:
    """Wait for the front to connect, hear why, and leave."""
    port.greet(failed)
    deadline = time.monotonic() + FAREWELL_SECONDS
    while time.monotonic() < deadline:
        if any(message is None for _, message in port.receive(0.1)):
            return
