// The same as checks.py: one line a check, `ok NAME` or `failed NAME: why`.
export const URL = process.env.OCTAVO_URL;
export const MODEL = process.env.OCTAVO_MODEL;
export const HELLO = [{ role: "user", content: "Say hello to my cat." }];

export async function check(name, body) {
  try {
    await body();
    console.log(`ok ${name}`);
  } catch (error) {
    console.error(error);
    console.log(`failed ${name}: ${String(error?.message ?? error).replace(/\s+/g, " ").slice(0, 200)}`);
  }
}

export function assert(right, what = "not as expected") {
  if (!right) throw new Error(what);
}

export async function raised(body) {
  try {
    await body();
  } catch (error) {
    return error;
  }
  throw new Error("no error");
}
