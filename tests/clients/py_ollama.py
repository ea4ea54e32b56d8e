"""The `ollama` package: chat, generate, the model's pages, pull."""

import ollama
from checks import HELLO, MODEL, URL, check

client = ollama.Client(host=URL)
OPTIONS = {"num_predict": 16}


@check
def chat():
    made = client.chat(MODEL, HELLO, options=OPTIONS)
    assert made.message.content and made.done_reason in ("stop", "length")


@check
def chat_stream():
    parts = list(client.chat(MODEL, HELLO, options=OPTIONS, stream=True))
    assert "".join(part.message.content or "" for part in parts) and parts[-1].done and parts[-1].eval_count


@check
def generate():
    made = client.generate(MODEL, "Once upon a time", options=OPTIONS)
    assert made.response and made.context and client.generate(MODEL, "And?", context=made.context, options=OPTIONS)


@check
async def asynchronous():
    async with ollama.AsyncClient(host=URL) as made:
        assert (await made.chat(MODEL, HELLO, options=OPTIONS)).message.content


@check
def models():
    assert client.list().models[0].model and client.ps().models[0].context_length
    assert client.show(MODEL).modelinfo["general.architecture"] and client.pull(MODEL).status == "success"


@check
def load():
    assert client.generate(MODEL, "", keep_alive="5m").done_reason == "load"


@check
def errors():
    try:
        client.chat("llama9", HELLO)
    except ollama.ResponseError as error:
        assert error.status_code == 404 and "not found" in error.error
    else:
        raise AssertionError("no error")
