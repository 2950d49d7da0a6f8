/**
 * The edge's API: requests with the user's token, and a session's live events.
 */

import { access } from "./access.js";

// Below whatever path an ingress serves the edge.
const EDGE = new URL("..", import.meta.url);
const FINAL = [401, 403, 404, 406, 422];
const AGAIN_MS = [500, 15_000];
const MOST_UNPARSED = 4 * 1024 * 1024;

/** A refusal of the edge (problem+json), or an edge that does not answer. */
export class Problem extends Error {
  constructor({ code, detail, status = 0, ...fields }) {
    super(detail);
    this.code = code;
    this.status = status;
    this.fields = fields;
  }
}

const AWAY = new Problem({
  code: "unreachable",
  detail: "the edge does not answer; see that it runs and that this machine reaches it, then try again",
});

async function sent(path, { method = "GET", query = {}, body, headers = {}, accept = "application/json", signal } = {}) {
  const url = new URL(path, EDGE);
  for (const [name, value] of Object.entries(query)) if (value) url.searchParams.set(name, value);
  const given = { Accept: accept, ...headers };
  if (access.token) given.Authorization = `Bearer ${access.token}`;
  if (body !== undefined) given["Content-Type"] = "application/json";
  // Of the same origin: an edge may ask browsers for a client's certificate.
  const options = { method, headers: given, signal, credentials: "same-origin", redirect: "error", cache: "no-store" };
  try {
    return await fetch(url, { ...options, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw AWAY;
  }
}

async function problemOf(response) {
  const text = (await response.text()).slice(0, 100_000);
  let told = {};
  try {
    told = JSON.parse(text);
  } catch {
    // A proxy's page, perhaps.
  }
  const problem = new Problem({
    ...told,
    code: String(told.code ?? `http_${response.status}`),
    detail: String(told.detail ?? "the answer is not the edge's; see the proxy before it"),
    status: response.status,
  });
  if (response.status === 401) access.signOut(problem);
  return problem;
}

/** The JSON answer of the API, with `source` and `behind_s` beside it. */
export async function call(path, options = {}) {
  const response = await sent(path, options);
  if (!response.ok) throw await problemOf(response);
  const value = response.status === 204 ? null : await response.json();
  const source = response.headers.get("Everbus-Source") ?? "bus";
  return { value, source, behindS: Number(response.headers.get("Everbus-Behind") ?? 0) };
}

/** A fresh Idempotency-Key: one for each thing that the user asks for, also if it is sent again. */
export function writeKey() {
  const random = crypto.getRandomValues(new Uint8Array(16)); // randomUUID() needs HTTPS
  return `console-${[...random].map((one) => one.toString(16).padStart(2, "0")).join("")}`;
}

/** The answer of a probe: its status and text, also when that is a failure. */
export async function probe(path, options = {}) {
  const response = await sent(path, { ...options, accept: "*/*" });
  return { status: response.status, text: await response.text() };
}

export const sessionPath = (id, ...rest) => ["sessions", id, ...rest].map(encodeURIComponent).join("/");

/**
 * Yield a session's events in order, each once; `stream.opened` after each connection and
 * `lost` before the next attempt. Ends at `end`, which it yields, or with *signal*.
 */
export async function* follow(session, { after, signal }) {
  let pauseMs = AGAIN_MS[0];
  while (!signal.aborted) {
    try {
      const response = await sent(sessionPath(session, "events"), { query: { after }, signal, accept: "text/event-stream" });
      if (FINAL.includes(response.status)) throw await problemOf(response);
      if (response.ok) {
        for await (const message of messages(response.body)) {
          if (message.event === "cut") break;
          after = message.id || after;
          pauseMs = AGAIN_MS[0];
          yield message;
          if (message.event === "end") return;
        }
      }
    } catch (error) {
      if (signal.aborted || (error instanceof Problem && error !== AWAY)) throw error;
    }
    yield { event: "lost" };
    await pause(pauseMs * (0.5 + Math.random()), signal);
    pauseMs = Math.min(pauseMs * 2, AGAIN_MS[1]);
  }
}

async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      if (rest.length > MOST_UNPARSED) return;
      for (const block of blocks) {
        const message = parsed(block);
        if (message.event) yield message;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have broken already
  }
}

function parsed(block) {
  const fields = {};
  for (const line of block.split("\n")) {
    const at = line.indexOf(": ");
    if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2);
  }
  return { event: fields.event, id: fields.id, data: fields.data ? JSON.parse(fields.data) : {} };
}

/** Resolve after *ms*, or when *signal* aborts. */
export function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });
}
