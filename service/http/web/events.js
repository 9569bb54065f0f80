// Server-sent events over fetch: `EventSource` cannot send the key. Resumes with Last-Event-ID.

import { Problem, send } from "./api.js";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;

/**
 * Yield `{id, kind, data}` until `ended(event)` holds or the server says 204.
 *
 * A lost connection is taken up again after the last event; a refusal (4xx) is thrown.
 */
export async function* follow(to, { signal, ended, lost = () => {} }) {
  let last = "";
  let pause = FIRST_PAUSE_MS;
  while (!signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
      const answer = await send("GET", to, { signal, headers });
      if (answer.status === 204) return;
      for await (const event of events(answer.body)) {
        last = event.id || last;
        pause = FIRST_PAUSE_MS;
        yield event;
        if (ended(event)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status >= 400 && error.status < 500) throw error;
    }
    lost();
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  }
}

/** Take a stream of bytes apart into events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event) yield event;
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // it may be broken already; nobody reads it any more
  }
}

function parsed(block) {
  const event = { id: "", kind: "message", data: "" };
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (field === "id") event.id = value;
    else if (field === "event") event.kind = value;
    else if (field === "data") event.data += event.data ? `\n${value}` : value;
  }
  return event.data ? { ...event, data: JSON.parse(event.data) } : null; // else a comment: a ping
}
