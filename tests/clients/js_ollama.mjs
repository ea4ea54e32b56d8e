// The `ollama` package of npm: chat, generate, the model's pages.
import { Ollama } from "ollama";
import { HELLO, MODEL, URL, assert, check, raised } from "./checks.mjs";

const client = new Ollama({ host: URL });
const options = { num_predict: 16 };

await check("chat", async () => {
  const made = await client.chat({ model: MODEL, messages: HELLO, options });
  assert(made.message.content && made.done);
});
await check("chat_stream", async () => {
  let text = "";
  let last;
  for await (const part of await client.chat({ model: MODEL, messages: HELLO, options, stream: true })) {
    text += part.message.content;
    last = part;
  }
  assert(text && last.done && last.eval_count);
});
await check("generate", async () => {
  assert((await client.generate({ model: MODEL, prompt: "Once upon a time", options })).response);
});
await check("models", async () => {
  assert((await client.list()).models.length && (await client.ps()).models.length);
  assert((await client.show({ model: MODEL })).capabilities.includes("completion"));
});
await check("errors", async () => {
  const error = await raised(() => client.chat({ model: "llama9", messages: HELLO }));
  assert(error.message.includes("not found"));
});
