// The `@anthropic-ai/sdk` package: bodies, streams, the stream helper, counting tokens, errors.
import Anthropic from "@anthropic-ai/sdk";
import { HELLO, MODEL, URL, assert, check, raised } from "./checks.mjs";

const client = new Anthropic({ baseURL: URL, apiKey: "none", maxRetries: 0 });
const asked = { model: MODEL, max_tokens: 16, messages: HELLO };

await check("messages", async () => {
  const made = await client.messages.create(asked);
  assert(made.content[0].text && made.usage.output_tokens);
});
await check("raw_stream", async () => {
  const kinds = [];
  for await (const event of await client.messages.create({ ...asked, stream: true })) kinds.push(event.type);
  assert(kinds[0] === "message_start" && kinds.at(-1) === "message_stop");
});
await check("stream_helper", async () => {
  const made = await client.messages.stream(asked).finalMessage();
  assert(made.content[0].text && made.stop_reason);
});
await check("count_tokens", async () => {
  assert((await client.messages.countTokens({ model: MODEL, messages: HELLO })).input_tokens > 5);
});
await check("errors", async () => {
  const error = await raised(() => client.messages.create({ ...asked, model: "claude" }));
  assert(error.status === 404 && error.message.includes(MODEL));
});
