"""The one tree of errors that octavo raises on purpose.

    OctavoError                     500  server_error           exit 1
    ├── InvalidRequest              400  invalid_request_error  exit 2   names the parameter
    │   ├── ContextLengthExceeded   400  code context_length_exceeded
    ├── GrammarFailed               400  code grammar_failed
    ├── Unauthorized                401  authentication_error
    ├── Forbidden                   403  permission_error
    │   └── MethodNotAllowed        405  names those that are
    ├── NotFound                    404  not_found_error
    │   └── ModelNotServed          404  code model_not_found
    ├── QueueFull                   429  rate_limit_error       retry_after seconds
    ├── RateLimited                 429  rate_limit_error       code rate_limit_exceeded, retry_after seconds
    ├── DeadlineExceeded            504  server_error           code deadline_exceeded
    ├── Unavailable                 503  server_error           code unavailable, retry_after seconds
    ├── EngineDied                  503  server_error           500 when the answer had begun
    ├── EngineKiller                500  code engine_killer
    ├── ConfigError                 exit 2   names the flag and the nearest known name
    ├── ModelNotFound               exit 3   404 when it reaches a client
    ├── UnsupportedModel            exit 3
    ├── CheckpointError             exit 3   names the file
    ├── DoesNotFit                  exit 4
    ├── AddressInUse                exit 5
    └── EngineDiedTooOften          exit 6

Each says what is wrong, where (file, key, flag or parameter) and what to do. It knows the OpenAI body, which the other
dialects translate; it knows neither HTTP nor the terminal.
"""

from __future__ import annotations

INTERRUPTED = 130  # the exit code of a second Ctrl-C, which is no error


class OctavoError(Exception):
    """An error with a message fit for the user, an HTTP status and an exit code.

    `status`, `type` and `code` are what an HTTP client sees, `param` is the parameter, flag or key at fault,
    `retry_after` (seconds) becomes the Retry-After header, `exit_code` is what the command line ends with.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        exit_code: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        if status is not None:
            self.status = status
        if type is not None:
            self.type = type
        if code is not None:
            self.code = code
        if exit_code is not None:
            self.exit_code = exit_code

    @property
    def headers(self) -> dict[str, str]:
        """Of the HTTP answer, beside those that follow from the status."""
        return {}

    def to_openai(self) -> dict[str, dict[str, str | None]]:
        """The OpenAI body: `{"error": {"message", "type", "param", "code"}}`; code is null where there is no word."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(OctavoError):
    """A request that the client has to change; `param` names the field, as a path such as `messages[1].content`."""

    status = 400
    type = "invalid_request_error"
    exit_code = 2


class ContextLengthExceeded(InvalidRequest):
    """Prompt and requested output do not fit the context. The words of the message are read by clients."""

    code = "context_length_exceeded"

    def __init__(
        self, limit: int, prompt_tokens: int, output_tokens: int = 0, *, param: str | None = "messages"
    ) -> None:
        self.limit = limit
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        asked = f"{prompt_tokens} tokens"
        if output_tokens:
            total = prompt_tokens + output_tokens
            asked = f"{total} tokens ({prompt_tokens} in the prompt, {output_tokens} in the completion)"
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, you requested {asked}. "
            "Please reduce the length of the prompt or of the completion.",
            param=param,
        )


class MethodNotAllowed(InvalidRequest):
    """A route that does not answer this HTTP method."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        self.allowed = ", ".join(allowed)
        super().__init__(f"{method} is not answered here: {self.allowed}.")

    @property
    def headers(self) -> dict[str, str]:
        return {"allow": self.allowed}


class GrammarFailed(OctavoError):
    """An answer under structured_outputs that cannot go on: no id may follow, or its grammar is beyond a limit."""

    status = 400
    type = "invalid_request_error"
    code = "grammar_failed"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="structured_outputs")


class Unauthorized(OctavoError):
    """No key, or a wrong one."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(OctavoError):
    """A key that is right, for something that it may not do."""

    status = 403
    type = "permission_error"
    code = "admin_key_needed"


class NotFound(OctavoError):
    """A route or a thing that does not exist."""

    status = 404
    type = "not_found_error"


class ModelNotServed(NotFound):
    """The request names a model that this server does not serve; `served` are the names that it does."""

    code = "model_not_found"

    def __init__(self, name: str, served: tuple[str, ...] = ()) -> None:
        self.name = name
        self.known = f" Served here: {', '.join(served)}." if served else ""
        super().__init__(f"The model `{name}` does not exist.{self.known}", param="model")


class QueueFull(OctavoError):
    """The waiting queue is at its bound."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, *, retry_after: float = 1.0, code: str | None = None) -> None:
        super().__init__(message, retry_after=retry_after, code=code)


class RateLimited(OctavoError):
    """A key has used what it may. headers: what tells its limits."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float = 1.0, headers: dict[str, str] | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self._headers = headers or {}

    @property
    def headers(self) -> dict[str, str]:
        return self._headers


class DeadlineExceeded(OctavoError):
    """The time that a request was given is over, and there is nothing yet that it could be answered with."""

    status = 504
    code = "deadline_exceeded"


class Unavailable(OctavoError):
    """Nothing is served just now: loading, draining, or restarting."""

    status = 503
    code = "unavailable"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message, retry_after=retry_after)


class EngineDied(OctavoError):
    """The engine process ended under a request. 503 before the first token, 500 (`begun`) after it."""

    status = 503
    type = "server_error"
    code = "engine_died"

    def __init__(self, message: str, *, begun: bool = False, retry_after: float | None = 1.0) -> None:
        super().__init__(message, status=500 if begun else 503, retry_after=None if begun else retry_after)


class EngineKiller(OctavoError):
    """This request ends the engine, as was found out by running it alone. Repeating it is refused at once."""

    code = "engine_killer"


class ConfigError(OctavoError):
    """A flag, environment variable or key of the configuration file; `nearest` is the known name closest to it."""

    exit_code = 2

    def __init__(self, message: str, *, flag: str | None = None, nearest: str | None = None) -> None:
        super().__init__(f"{message} Did you mean {nearest}?" if nearest else message, param=flag)
        self.flag = flag
        self.nearest = nearest


class ModelNotFound(OctavoError):
    """No source has the model of this name."""

    status = 404
    type = "not_found_error"
    code = "model_not_found"
    exit_code = 3


class UnsupportedModel(OctavoError):
    """The checkpoint is well formed, but its architecture, format or feature is not built."""

    exit_code = 3


class CheckpointError(OctavoError):
    """A broken or hostile model file; `path` names it."""

    exit_code = 3

    def __init__(self, message: str, *, path: str | None = None, key: str | None = None) -> None:
        super().__init__(message, param=key)
        self.path = path


class DoesNotFit(OctavoError):
    """The memory plan is over what is allowed. The message gives the figures and the ways out."""

    exit_code = 4


class AddressInUse(OctavoError):
    """Another process listens on the address."""

    exit_code = 5


class EngineDiedTooOften(OctavoError):
    """The supervisor gave up restarting the engine."""

    status = 503
    exit_code = 6
