// What the scripts of coding agents share: a command in a folder of its own, which must end well and say something.
import { spawn } from "node:child_process";
import { mkdtempSync, mkdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { assert } from "./checks.mjs";

export const PROMPT = "Say hello in one short sentence. Use no tools.";
export const HOME = mkdtempSync(join(tmpdir(), "agent-"));

export function file(path, text) {
  const whole = join(HOME, path);
  mkdirSync(dirname(whole), { recursive: true });
  writeFileSync(whole, text);
  return whole;
}

export async function answered(command, words, environment = {}) {
  const path = join(process.cwd(), "node_modules", ".bin", command);
  const work = join(HOME, "work");
  mkdirSync(work, { recursive: true });
  const env = { ...process.env, HOME, XDG_CONFIG_HOME: join(HOME, ".config"), CI: "1", ...environment };
  const child = spawn(path, words, { cwd: work, env, stdio: ["ignore", "pipe", "pipe"] });
  let out = "";
  let err = "";
  child.stdout.on("data", (data) => (out += data));
  child.stderr.on("data", (data) => (err += data));
  const timer = setTimeout(() => child.kill("SIGKILL"), 400_000);
  const code = await new Promise((resolve) => child.on("close", resolve));
  clearTimeout(timer);
  assert(code === 0 && out.trim(), `exit ${code}: ${(err || out).trim().slice(-300)}`);
  return out;
}
