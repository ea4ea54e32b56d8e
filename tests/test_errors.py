"""Each error says its status, type and exit code, and makes the OpenAI body."""

import pytest

from octavo import errors
from octavo.errors import OctavoError

TREE = [  # class, arguments, status, type, exit code
    (errors.InvalidRequest, ("no",), 400, "invalid_request_error", 2),
    (errors.ContextLengthExceeded, (8192, 9000), 400, "invalid_request_error", 2),
    (errors.Unauthorized, ("no",), 401, "authentication_error", 1),
    (errors.Forbidden, ("no",), 403, "permission_error", 1),
    (errors.NotFound, ("no",), 404, "not_found_error", 1),
    (errors.ModelNotServed, ("gpt-9",), 404, "not_found_error", 1),
    (errors.QueueFull, ("no",), 429, "rate_limit_error", 1),
    (errors.DeadlineExceeded, ("no",), 504, "server_error", 1),
    (errors.RateLimited, ("no",), 429, "rate_limit_error", 1),
    (errors.Unavailable, ("no",), 503, "server_error", 1),
    (errors.EngineDied, ("no",), 503, "server_error", 1),
    (errors.ConfigError, ("no",), 500, "server_error", 2),
    (errors.ModelNotFound, ("no",), 404, "not_found_error", 3),
    (errors.UnsupportedModel, ("no",), 500, "server_error", 3),
    (errors.EngineKiller, ("no",), 500, "server_error", 1),
    (errors.GrammarFailed, ("no",), 400, "invalid_request_error", 1),
    (errors.MethodNotAllowed, ("PUT", ("GET",)), 405, "invalid_request_error", 2),
    (errors.CheckpointError, ("no",), 500, "server_error", 3),
    (errors.DoesNotFit, ("no",), 500, "server_error", 4),
    (errors.AddressInUse, ("no",), 500, "server_error", 5),
    (errors.EngineDiedTooOften, ("no",), 503, "server_error", 6),
]


@pytest.mark.parametrize(("kind", "arguments", "status", "type_", "exit_code"), TREE)
def test_tree(kind: type[OctavoError], arguments: tuple, status: int, type_: str, exit_code: int) -> None:
    error = kind(*arguments)
    assert isinstance(error, OctavoError)
    assert (error.status, error.type, error.exit_code) == (status, type_, exit_code)
    body = error.to_openai()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["message"] == str(error) and body["type"] == type_


def test_every_class_of_the_tree_is_listed() -> None:
    classes = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, OctavoError)}
    assert classes - {OctavoError} == {row[0] for row in TREE}


def test_context_length_has_the_words_that_clients_match() -> None:
    error = errors.ContextLengthExceeded(8192, 9000, 100)
    assert "maximum context length is 8192 tokens" in str(error)
    assert "9100" in str(error) and "9000" in str(error)
    assert error.to_openai()["error"]["code"] == "context_length_exceeded"


def test_code_is_null_where_there_is_no_word() -> None:
    assert errors.InvalidRequest("top_p is 3", param="top_p").to_openai() == {
        "error": {"message": "top_p is 3", "type": "invalid_request_error", "param": "top_p", "code": None}
    }


def test_a_model_that_is_not_served_lists_those_that_are() -> None:
    error = errors.ModelNotServed("gpt-9", ("a", "b"))
    assert "gpt-9" in str(error) and "a, b" in str(error)
    assert error.to_openai()["error"]["code"] == "model_not_found"


def test_an_engine_death_after_the_first_token_is_not_retried() -> None:
    assert errors.EngineDied("gone").retry_after == 1.0
    begun = errors.EngineDied("gone", begun=True)
    assert (begun.status, begun.retry_after) == (500, None)


def test_an_instance_may_differ_from_its_class() -> None:
    error = OctavoError("body is too large", status=413, type="invalid_request_error", code="too_large")
    assert (error.status, error.code) == (413, "too_large")
    assert (OctavoError.status, OctavoError.code) == (500, None)


def test_a_config_error_names_the_nearest() -> None:
    error = errors.ConfigError("unknown option --prot.", flag="--prot", nearest="--port")
    assert str(error) == "unknown option --prot. Did you mean --port?"
