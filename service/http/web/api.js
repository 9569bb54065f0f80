// Calls to the service: the key, errors as problem documents (RFC 9457), pages.

const BASE = new URL("..", import.meta.url); // the service, also behind a path of a proxy
const KEY = "gaitid.key";

/** An error of the service, or that it cannot be reached. */
export class Problem extends Error {
  constructor({ type = "", title, detail = "", status = 0, errors = [], ...members }, retryAfter = null) {
    super(title);
    Object.assign(this, members, { type, title, detail, status, errors, retryAfter });
  }
}

/** The API key of this browser tab; it is kept nowhere else. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** A path whose parts may hold any character. */
export function path(strings, ...parts) {
  return String.raw({ raw: strings }, ...parts.map(encodeURIComponent));
}

/** Send a request; throws `Problem` unless it was answered well. */
export async function send(method, to, { query = {}, body, json, headers = {}, signal } = {}) {
  const url = new URL(to.replace(/^\//, ""), BASE);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== "") url.searchParams.set(name, value);
  }
  const all = { ...headers };
  const used = key.get();
  if (used) all.Authorization = `Bearer ${used}`;
  if (json !== undefined) all["Content-Type"] = "application/json";
  const sent = json === undefined ? body : JSON.stringify(json); // a form or a file says its own type
  let answer;
  try {
    answer = await fetch(url, { method, headers: all, body: sent, signal, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({
      title: "The service cannot be reached",
      detail: "Check that it is running and that this device has a connection, then try again.",
    });
  }
  if (answer.ok) return answer;
  const refusal = await problem(answer);
  // An answer to a key that has been replaced meanwhile asks for nothing.
  if (answer.status === 401 && used === key.get()) dispatchEvent(new CustomEvent("key-needed"));
  throw refusal;
}

/** The JSON that a call answers. */
export async function call(method, to, options) {
  return (await send(method, to, options)).json();
}

/** The bytes that a call answers. */
export async function bytes(to, options) {
  return new Uint8Array(await (await send("GET", to, options)).arrayBuffer());
}

/** Every item of a list that comes in pages. */
export async function everything(to) {
  const items = [];
  let cursor = null;
  do {
    const page = await call("GET", to, { query: { limit: 500, cursor } });
    items.push(...page.items);
    cursor = page.next_cursor;
  } while (cursor);
  return items;
}

/** Show an image that needs the key: an `<img>` cannot send one. */
export async function showImage(image, to) {
  const blob = await (await send("GET", to)).blob();
  image.src = URL.createObjectURL(blob);
  try {
    await image.decode();
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

async function problem(answer) {
  const retryAfter = answer.headers.get("Retry-After");
  let document = { title: `The service answered ${answer.status}`, status: answer.status };
  if (answer.headers.get("Content-Type")?.includes("json")) {
    document = { ...document, ...(await answer.json()) };
  }
  return new Problem(document, retryAfter);
}
