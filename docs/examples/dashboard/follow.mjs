/**
 * Follow a session over server-sent events, from a page or from Node.js.
 *
 * `EventSource` cannot send a token in a header, and a token in a URL ends up in logs. So
 * this reads the stream by `fetch`.
 */

const AGAIN_MS = 1_000;
const FINAL = [401, 403, 404, 422];

/** An answer that lasts: a bad token, no such session, no right to it. */
class Refused extends Error {}

/** *state* with a JSON merge patch (RFC 7396) applied: null removes. */
export function patched(state, patch) {
  if (patch === undefined) return state;
  if (patch === null || typeof patch !== "object" || Array.isArray(patch)) return patch;
  const base = state === null || typeof state !== "object" || Array.isArray(state) ? {} : state;
  const kept = Object.entries({ ...base, ...patch }).filter(([name]) => patch[name] !== null);
  return Object.fromEntries(kept.map(([name, value]) => [
    name, name in patch ? patched(base[name], patch[name]) : value,
  ]));
}

/** One message of a stream: its event, id and data. */
function parsed(block) {
  const fields = block.split("\n").map((line) => /^(\w+): ?(.*)$/.exec(line) ?? []);
  return Object.fromEntries(fields.map(([, name, value]) => [name, value]));
}

/** The messages of one response, each as soon as it is whole. */
async function* messages(response) {
  let rest = "";
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    const blocks = (rest + chunk).split("\n\n");
    rest = blocks.pop();
    yield* blocks.map(parsed);
  }
}

/**
 * Yield every event of *session*, once and in order, through restarts of edges; ends with
 * the session, the token, or *signal*.
 */
export async function* follow(edge, session, token, { after = "0", signal } = {}) {
  const headers = { Authorization: `Bearer ${token}` };
  while (!signal?.aborted) {
    try {
      const url = `${edge}/sessions/${session}/events?after=${after}`;
      const response = await fetch(url, { headers, signal });
      if (FINAL.includes(response.status)) throw new Refused(await response.text());
      if (!response.ok) throw new Error(`the edge answers ${response.status}`);
      for await (const { event, id, data } of messages(response)) {
        if (event === "end") return;
        if (event === "cut") break;
        if (event === undefined || event === "stream.opened") continue;
        yield JSON.parse(data);
        after = id;
      }
    } catch (error) {
      if (error instanceof Refused) throw error;
    }
    await new Promise((again) => setTimeout(again, AGAIN_MS));
  }
}
