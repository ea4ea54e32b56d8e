// The pi coding agent over /v1/chat/completions.
import { PROMPT, answered, file, launched } from "./js_agents.mjs";
import { MODEL, URL, check } from "./checks.mjs";

const models = [{ id: MODEL, name: MODEL, contextWindow: 32768, maxTokens: 4096, reasoning: false, input: ["text"] }];
const octavo = { baseUrl: `${URL}/v1`, apiKey: "none", api: "openai-completions", models };
file(".pi/agent/models.json", JSON.stringify({ providers: { octavo } }));
await check("prompt", () => answered("pi", ["-p", "--provider", "octavo", "--model", MODEL, PROMPT]));
await check("launch", () => launched("pi", ["-p", PROMPT]));
