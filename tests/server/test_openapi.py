"""schemathesis on the server's own document: requests drawn from it, valid and broken, against a live server.

Whatever comes, there is one answer of the right shape: no 5xx but those that say "not now", errors as the route's API
says them, and bodies as the document describes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.config import GenerationConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from octavo.server.openapi import document
from octavo.server.routes import ROUTES
from tests.server.live import Live, error_of

KEY, ADMIN = "sk-user", "sk-admin"
NOT_NOW = {503, 504, 529}  # an engine that is away, a deadline: meant
CHECKS: list[Any] = [status_code_conformance, content_type_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(document([entry.operation for entry in ROUTES]))
OPERATIONS = [each.ok() for each in SCHEMA.get_all_operations()]
MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with both kinds of keys, whose answers are short, and which has models of nobody to remove."""
    folder = tmp_path_factory.mktemp("openapi")
    own = ["--cache-dir", str(folder / "cache"), "--download-dir", str(folder / "hub"), "--offline"]
    server = Live(folder, "--max-model-len", "96", "--api-key", KEY, "--admin-api-key", ADMIN, *own)
    yield server
    assert not any(line.startswith("ERROR") for line in server.lines), server.log
    assert server.stop() == 0


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        yield made


def ask(live: Live, session: requests.Session, case: schemathesis.Case, key: str | None) -> None:
    """Send a drawn request and judge what comes back."""
    headers = {"Authorization": f"Bearer {key}" if key else ""}
    answer = case.call(base_url=live.url, session=session, headers=headers, timeout=60)
    status, told = answer.status_code, f"{case.method} {answer.request.url} {str(case.body)[:2000]}"
    assert status < 500 or status in NOT_NOW, f"{told}: {status} {answer.text}"
    assert status != 422, told
    if status >= 400 and case.method != "HEAD":
        fields = {name: value[0] for name, value in answer.headers.items()}
        error_of(
            httpx.Response(
                status, headers=fields, content=answer.content,
                request=httpx.Request(case.method, live.url + case.operation.path),
            )
        )  # fmt: skip
    case.validate_response(answer, checks=CHECKS, headers=headers)


def draw(operation: Any, mode: GenerationMode, examples: int, live: Live, session: requests.Session) -> None:
    """So many requests of one kind to one operation, the same ones each time."""
    key = ADMIN if operation.path.startswith(("/api/", "/slots", "/reset")) else KEY

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: schemathesis.Case) -> None:
        ask(live, session, case, key)

    each()


def label(operation: Any) -> str:
    return f"{operation.method.upper()} {operation.path}"


def has_broken(operation: Any) -> bool:
    """Whether there is anything in the operation's requests that may be wrong."""
    return bool(operation.body or operation.path_parameters or operation.query)


@pytest.mark.parametrize("operation", OPERATIONS, ids=label)
def test_valid_requests(keyed: Live, session: requests.Session, operation: Any) -> None:
    draw(operation, GenerationMode.POSITIVE, 6 if operation.body else 3, keyed, session)


@pytest.mark.parametrize("operation", [*filter(has_broken, OPERATIONS)], ids=label)
def test_broken_requests(keyed: Live, session: requests.Session, operation: Any) -> None:
    draw(operation, GenerationMode.NEGATIVE, 12 if operation.body else 4, keyed, session)


@pytest.mark.parametrize("operation", OPERATIONS, ids=label)
def test_requests_without_a_key(keyed: Live, session: requests.Session, operation: Any) -> None:
    """Nothing of a request is looked at before its key."""
    cases = SCHEMA.iter_coverage_cases(operation, generation_modes=MODES, generation_config=GenerationConfig())
    entry = next(each for each in ROUTES if each.label == operation.path)
    case = next(each for each in cases if each.method.lower() == operation.method)
    answer = case.call(base_url=keyed.url, session=session, headers={"Authorization": "Bearer sk-other"})
    assert entry.public or answer.status_code == 401, answer.text


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=label)
def test_many_requests(keyed: Live, session: requests.Session, operation: Any, mode: GenerationMode) -> None:
    """200 of each kind for each operation, and each bound, type and missing field of its schema once."""
    cases = SCHEMA.iter_coverage_cases(operation, generation_modes=[mode], generation_config=GenerationConfig())
    for case in cases:
        ask(keyed, session, case, ADMIN)
    if mode is GenerationMode.POSITIVE or has_broken(operation):
        draw(operation, mode, 200, keyed, session)
