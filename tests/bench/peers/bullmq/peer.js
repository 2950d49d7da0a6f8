// BullMQ with the verbs of tests/bench/peers/script.py: fill, work, answer, ask.
const { Queue, QueueEvents, Worker } = require("bullmq");

const [verb, url, told] = process.argv.slice(2);
const count = Number(told);
const at = new URL(url);
const connection = { host: at.hostname, port: Number(at.port), maxRetriesPerRequest: null };
const [BYTES, DIGITS, WARMING, CHUNK, AT_ONCE, ASK_MS] = [300, 8, 20, 1000, 100, 10000];

const tell = (found) => process.stdout.write(JSON.stringify(found) + "\n");
// The kernel's monotonic clock, as Python's time.monotonic().
const now = () => Number(process.hrtime.bigint()) / 1e9;
const body = (number) => String(number).padStart(DIGITS, "0").padEnd(BYTES, "x");
const job = (number) => ({ name: "noop", data: body(number), opts: { removeOnComplete: true } });

async function fill() {
  const queue = new Queue("peer", { connection });
  const began = now();
  for (let first = 0; first < count; first += CHUNK) {
    const size = Math.min(CHUNK, count - first);
    await queue.addBulk(Array.from({ length: size }, (_, i) => job(first + i)));
  }
  tell({ took_s: now() - began });
  await queue.close();
}

async function work(expected) {
  const seen = new Uint8Array(expected);
  let [handled, repeated] = [0, 0];
  const noop = async (job) => {
    const number = Number(job.data.slice(0, DIGITS));
    if (seen[number]) {
      repeated += 1;
      return;
    }
    seen[number] = 1;
    handled += 1;
    if (handled === 1 || handled === expected) {
      const sum = (all, one) => all + one;
      tell({ at: now(), handled: seen.reduce(sum, 0), repeated });
    }
  };
  new Worker("peer", noop, { connection, concurrency: AT_ONCE });
}

async function ask() {
  const queue = new Queue("peer", { connection });
  const events = new QueueEvents("peer", { connection });
  await events.waitUntilReady();
  const took = [];
  for (let number = 0; number < count + WARMING; number += 1) {
    const { name, data } = job(number);
    const began = now();
    const added = await queue.add(name, data);
    await added.waitUntilFinished(events, ASK_MS);
    took.push(now() - began);
  }
  tell({ asked_s: took.slice(WARMING) });
  await events.close();
  await queue.close();
}

const verbs = { fill, ask, work: () => work(count), answer: () => work(count + WARMING) };
verbs[verb]().catch((error) => {
  console.error(error);
  process.exit(1);
});
