"""LiteLLM under four of its providers: bodies, streams, usage, errors as its own classes."""

import litellm
from checks import HELLO, MODEL, URL, check

litellm.suppress_debug_info = True


def exercised(model, base):
    asked = {"model": model, "messages": HELLO, "max_tokens": 16, "api_base": base, "api_key": "none"}
    made = litellm.completion(**asked)
    assert made.choices[0].message.content and made.usage.completion_tokens
    parts = list(litellm.completion(**asked, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts)


@check
def openai():
    exercised(f"openai/{MODEL}", URL + "/v1")


@check
def hosted_vllm():
    exercised(f"hosted_vllm/{MODEL}", URL + "/v1")


@check
def ollama_chat():
    exercised(f"ollama_chat/{MODEL}", URL)


@check
def anthropic():
    exercised(f"anthropic/{MODEL}", URL)


@check
def errors():
    try:
        litellm.completion(model="openai/gpt-4", messages=HELLO, api_base=URL + "/v1", api_key="none")
    except litellm.NotFoundError as error:
        assert MODEL in str(error)
    else:
        raise AssertionError("no error")
