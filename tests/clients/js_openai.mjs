// The `openai` package of npm: bodies, streams, the stream helpers of chat and responses, errors.
import OpenAI from "openai";
import { HELLO, MODEL, URL, assert, check, raised } from "./checks.mjs";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "none", maxRetries: 0 });

await check("chat", async () => {
  const made = await client.chat.completions.create({ model: MODEL, messages: HELLO, max_tokens: 16 });
  assert(made.choices[0].message.content && made.usage.completion_tokens);
});
await check("chat_stream", async () => {
  let text = "";
  const stream = await client.chat.completions.create({ model: MODEL, messages: HELLO, max_tokens: 16, stream: true });
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  assert(text);
});
await check("chat_stream_helper", async () => {
  const stream = client.chat.completions.stream({ model: MODEL, messages: HELLO, max_tokens: 16 });
  const made = await stream.finalChatCompletion();
  assert(made.choices[0].message.content && made.choices[0].finish_reason);
});
await check("responses", async () => {
  const made = await client.responses.create({ model: MODEL, input: "Say hello.", max_output_tokens: 16 });
  assert(made.output_text);
});
await check("responses_stream_helper", async () => {
  const stream = client.responses.stream({ model: MODEL, input: "Say hello.", max_output_tokens: 16 });
  const made = await stream.finalResponse();
  assert(made.output[0].content[0].text);
});
await check("errors", async () => {
  const error = await raised(() => client.chat.completions.create({ model: "gpt-4", messages: HELLO }));
  assert(error.status === 404 && error.code === "model_not_found" && error.message.includes(MODEL));
});
