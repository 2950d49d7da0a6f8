/**
 * The Prometheus text of an edge, as numbers: counters as rates, histograms as deltas.
 */

const LINE = /^([a-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/i;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const MOST_LINES = 20_000;
const REQUESTS = "everbus_edge_requests_total";
const BUCKETS = "everbus_edge_request_seconds_bucket";
// The page's own looks would be most of what an idle edge is asked.
const OWN = /^\/(console|metrics|health|readyz|livez|startupz)/;

/** Samples by name: `{labels, value}`. */
export function samplesIn(text) {
  const found = new Map();
  for (const line of text.split("\n", MOST_LINES)) {
    const [, name, given, value] = LINE.exec(line) ?? [];
    if (!name) continue;
    const labels = Object.fromEntries([...(given ?? "").matchAll(LABEL)].map(([, key, text]) => [key, text]));
    if (!found.has(name)) found.set(name, []);
    found.get(name).push({ labels, value: Number(value) });
  }
  return found;
}

/** The sum of a metric's samples of the API's routes. */
function total(samples, name, wanted = () => true) {
  return (samples.get(name) ?? []).filter(({ labels }) => !OWN.test(labels.route ?? "") && wanted(labels))
    .reduce((sum, { value }) => sum + value, 0);
}

/** Bound → requests so far that took at most so many seconds. */
function bucketsIn(samples) {
  const found = new Map();
  for (const { labels, value } of samples.get(BUCKETS) ?? []) {
    if (!OWN.test(labels.route)) found.set(labels.le, (found.get(labels.le) ?? 0) + value);
  }
  return [...found].sort(([a], [b]) => Number(a.replace("+Inf", "Infinity")) - Number(b.replace("+Inf", "Infinity")));
}

/** What one look at the metrics tells; two of them make a `Step`. */
export function look(text, atMs) {
  const samples = samplesIn(text);
  return {
    atMs,
    requests: total(samples, REQUESTS),
    refused: total(samples, REQUESTS, ({ status }) => status === "4xx"),
    failed: total(samples, REQUESTS, ({ status }) => status === "5xx"),
    buckets: bucketsIn(samples),
    streams: total(samples, "everbus_edge_streams"),
    inFlight: total(samples, "everbus_edge_requests_in_flight"),
    readOnly: total(samples, "everbus_edge_read_only"),
    memory: total(samples, "process_resident_memory_bytes"),
  };
}

/** Rates and latencies between two looks; null if the edge has restarted between them. */
export function step(before, after) {
  const seconds = (after.atMs - before.atMs) / 1000;
  if (seconds <= 0 || after.requests < before.requests) return null;
  const rate = (name) => (after[name] - before[name]) / seconds;
  const earlier = new Map(before.buckets);
  const upTo = after.buckets.map(([le, count]) => count - (earlier.get(le) ?? 0));
  const cells = after.buckets.map(([le], n) => ({ le, count: upTo[n] - (n ? upTo[n - 1] : 0) }));
  return { atMs: after.atMs, requests: rate("requests"), refused: rate("refused"), failed: rate("failed"), cells };
}
