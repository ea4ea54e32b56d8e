"""Mirostat's mu, which ids cannot tell: in every output, and the same tokens from wherever a request is resumed."""

import pytest

from octavo.request import Request, Resume
from octavo.sampling_params import SamplingParams
from tests import tiny
from tests.engine.native_world import Model, drive


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tiny")
    path = tiny.gguf_file(folder / "tiny.gguf", tiny.config(num_attention_heads=6, num_key_value_heads=2))
    return Model(path, kv_bytes=4 << 20)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("ahead", [1, 4])
def test_resumed_in_another_engine(model: Model, version: int, ahead: int) -> None:
    params = SamplingParams(
        max_tokens=24, ignore_eos=True, mirostat=version, mirostat_tau=3.0, mirostat_eta=0.5, temperature=1.3
    )
    request = Request("r", (5, 6, 7, 8), params, seed=11)
    whole = drive(model.engine(run_ahead=1), [request])[("r", 0)].token_ids
    core = model.engine(run_ahead=ahead)
    core.submit(request)
    seen: list[int] = []
    states: dict[int, float | None] = {}
    while core.has_work:
        for output in core.step():
            seen += output.token_ids
            states[len(seen)] = output.mu
    assert seen == whole
    assert len(set(states.values())) == len(states) >= 24 // ahead
    for count, mu in list(states.items())[:-1]:
        resume = Resume(0, tuple(whole[:count]), mu)
        rest = Request("r", request.prompt_ids, params, seed=11, resume=(resume,))
        core = model.engine(run_ahead=ahead)
        core.submit(rest)
        again: list[int] = []
        while core.has_work:
            again += [token for output in core.step() for token in output.token_ids]
        assert again == whole[count:]


def test_others_have_no_state(model: Model) -> None:
    core = model.engine()
    for name, more in (("plain", {}), ("greedy", {"mirostat": 2, "temperature": 0.0})):
        core.submit(Request(name, (5, 6, 7), SamplingParams(max_tokens=6, **more), seed=1))
    while core.has_work:
        assert all(output.mu is None for output in core.step())
