"""The `openai` package: chat, streams, the stream helper, completions, responses, files and batches."""

import time

import openai
from checks import HELLO, MODEL, URL, check

client = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)


@check
def models():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@check
def chat():
    made = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=16)
    assert made.choices[0].message.content and made.usage.completion_tokens


@check
def chat_stream():
    asked = {"model": MODEL, "messages": HELLO, "max_tokens": 16, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks) and chunks[-1].usage


@check
def chat_stream_helper():
    short = [{"role": "user", "content": "Say only: hi"}]  # the helper raises where a limit ends the answer
    with client.chat.completions.stream(model=MODEL, messages=short, temperature=0) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content
    assert "content.delta" in kinds


@check
async def chat_async():
    async with openai.AsyncOpenAI(base_url=URL + "/v1", api_key="none") as made:
        stream = await made.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, stream=True)
        assert [chunk async for chunk in stream]


@check
def completions():
    made = client.completions.create(model=MODEL, prompt=["One,", "Two,"], max_tokens=8, logprobs=1)
    assert len(made.choices) == 2 and made.choices[0].logprobs.tokens


@check
def responses():
    made = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16)
    again = client.responses.create(
        model=MODEL, input="And now goodbye.", max_output_tokens=16, previous_response_id=made.id
    )
    assert made.output_text and again.output_text and client.responses.retrieve(made.id).id == made.id


@check
def responses_stream_helper():
    with client.responses.stream(model=MODEL, input="Say hello.", max_output_tokens=16) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"


@check
def batches():
    body = f'{{"model": "{MODEL}", "prompt": "One,", "max_tokens": 4}}'
    line = f'{{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {body}}}'
    file = client.files.create(file=("lines.jsonl", line.encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    while batch.status in ("validating", "in_progress", "finalizing"):
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed" and client.files.content(batch.output_file_id).text


@check
def errors():
    try:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    except openai.NotFoundError as error:
        assert MODEL in str(error) and error.code == "model_not_found"
    else:
        raise AssertionError("no error")
