// Codex CLI over /v1/responses.
import { HOME, PROMPT, answered, file, launched } from "./js_agents.mjs";
import { MODEL, URL, check } from "./checks.mjs";

file(
  ".codex/config.toml",
  `model = "${MODEL}"\nmodel_provider = "octavo"\nmodel_context_window = 32768\n` +
    `[model_providers.octavo]\nname = "octavo"\nbase_url = "${URL}/v1"\nwire_api = "responses"\n`,
);
await check("exec", () =>
  answered("codex", ["exec", "--skip-git-repo-check", PROMPT], { CODEX_HOME: `${HOME}/.codex` }),
);
await check("launch", () => launched("codex", ["exec", "--skip-git-repo-check", PROMPT]));
