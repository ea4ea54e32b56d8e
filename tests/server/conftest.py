"""The live server that tests of this folder share."""

from collections.abc import Iterator

import pytest

from tests.server.live import Live


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server without keys; every test leaves it idle."""
    server = Live(tmp_path_factory.mktemp("state"), "--served-model-name", "smol", "--served-model-name", "a/b:c")
    yield server
    assert server.stop() == 0


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test that used the shared server nothing runs, and no block is owned."""
    yield
    if "live" in request.fixturenames:
        server: Live = request.getfixturevalue("live")
        server.wait_idle()
        assert server.metric("kv_cache_usage_perc") == 0
        assert server.process.poll() is None
