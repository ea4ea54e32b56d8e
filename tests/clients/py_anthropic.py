"""The `anthropic` package: messages, the stream helper, counting tokens, models, errors."""

import anthropic
from checks import HELLO, MODEL, URL, check

client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
ASKED = {"model": MODEL, "max_tokens": 16, "messages": HELLO}


@check
def messages():
    made = client.messages.create(**ASKED, system="Be brief.", stop_sequences=["<never>"])
    assert made.content[0].text and made.usage.output_tokens and made.stop_reason


@check
def stream_helper():
    with client.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        assert text == stream.get_final_message().content[0].text


@check
def raw_stream():
    kinds = [event.type for event in client.messages.create(**ASKED, stream=True)]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"


@check
async def asynchronous():
    async with anthropic.AsyncAnthropic(base_url=URL, auth_token="none") as made:
        assert (await made.messages.create(**ASKED)).content


@check
def count_tokens():
    assert client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens > 5


@check
def models():
    assert MODEL in [model.id for model in client.models.list()]


@check
def errors():
    try:
        client.messages.create(**{**ASKED, "model": "claude"})
    except anthropic.NotFoundError as error:
        assert MODEL in str(error)
    else:
        raise AssertionError("no error")
