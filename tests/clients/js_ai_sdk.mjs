// The AI SDK with three providers: openai-compatible (chat), openai (responses), anthropic.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import { MODEL, URL, assert, check, raised } from "./checks.mjs";

const providers = {
  openai_compatible: createOpenAICompatible({ name: "octavo", baseURL: `${URL}/v1`, apiKey: "none" })(MODEL),
  openai: createOpenAI({ baseURL: `${URL}/v1`, apiKey: "none" })(MODEL),
  anthropic: createAnthropic({ baseURL: `${URL}/v1`, apiKey: "none" })(MODEL),
};
const missing = {
  openai_compatible: createOpenAICompatible({ name: "octavo", baseURL: `${URL}/v1`, apiKey: "none" })("gpt-4"),
  openai: createOpenAI({ baseURL: `${URL}/v1`, apiKey: "none" })("gpt-4"),
  anthropic: createAnthropic({ baseURL: `${URL}/v1`, apiKey: "none" })("gpt-4"),
};

for (const [name, model] of Object.entries(providers)) {
  await check(`${name}_text`, async () => {
    const made = await generateText({ model, prompt: "Say hello.", maxOutputTokens: 16, maxRetries: 0 });
    assert(made.text && made.usage.outputTokens && ["stop", "length"].includes(made.finishReason), made.finishReason);
  });
  await check(`${name}_stream`, async () => {
    let text = "";
    const made = streamText({ model, prompt: "Say hello.", maxOutputTokens: 16, maxRetries: 0 });
    for await (const part of made.textStream) text += part;
    const reason = await made.finishReason;
    assert(text && ["stop", "length"].includes(reason), reason);
  });
  await check(`${name}_errors`, async () => {
    const asked = { model: missing[name], prompt: "x", maxRetries: 0 };
    const error = await raised(() => generateText(asked));
    assert(error.message.includes(MODEL), error.message);
  });
}
