"""What holds for every test: the developer's own settings are out of the way, and hypothesis has no deadline."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("quick", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("quick")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job, whose children would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

KEPT = {"OCTAVO_CACHE"}  # where tests/real.py keeps models


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No OCTAVO_* variable of the developer's decides a test."""
    for name in list(os.environ):
        if name.startswith("OCTAVO_") and name not in KEPT:
            monkeypatch.delenv(name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-models", action="store_true", help="note which models were run: docs/models.json")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-models"):
        from tests.model_record import Recorder

        config.pluginmanager.register(Recorder())
