// opencode over /v1/chat/completions, through the AI SDK.
import { PROMPT, answered, file, launched } from "./js_agents.mjs";
import { MODEL, URL, check } from "./checks.mjs";

const provider = {
  npm: "@ai-sdk/openai-compatible",
  name: "octavo",
  options: { baseURL: `${URL}/v1`, apiKey: "none" },
  models: { [MODEL]: { name: MODEL, limit: { context: 32768, output: 4096 } } },
};
file("work/opencode.json", JSON.stringify({ provider: { octavo: provider }, share: "disabled", autoupdate: false }));
await check("run", () => answered("opencode", ["run", "-m", `octavo/${MODEL}`, PROMPT]));
await check("launch", () => launched("opencode", ["run", PROMPT]));
