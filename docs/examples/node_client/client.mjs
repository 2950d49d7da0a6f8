/**
 * A client of everbus in JavaScript, without the SDK: create, append, read, watch.
 *
 * It shows what docs/write-a-client.md explains: numbers, partitions, the token and its
 * grant, replies, and a watch through every reconnect. It has no lease and no spool, and
 * one server as its bus (no Sentinel, no Cluster). `demo.mjs` uses it.
 */
import { randomBytes } from "node:crypto";
import { crc32 } from "node:zlib";
import { decode, encode } from "@msgpack/msgpack";
import { createClient, RESP_TYPES } from "redis";

const TIMEOUT_MS = 10_000, ANSWER_MS = 1_000, SWEEP_MS = 500, WATCH_MS = 5_000;
const PASSING = ["unavailable", "overloaded", "expired", "timeout"];
const AS_BYTES = { typeMapping: { [RESP_TYPES.BLOB_STRING]: Buffer } };
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/** A UUIDv7: its time tells the managers that a session is new. */
function uuid7() {
  const bytes = randomBytes(16);
  bytes.writeUIntBE(Date.now(), 0, 6);
  bytes[6] = 0x70 | (bytes[6] & 0x0f);
  bytes[8] = 0x80 | (bytes[8] & 0x3f);
  return bytes.toString("hex").replace(/(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/** A refusal; decide by `code`, see docs/reference/errors.md. */
export class EverbusError extends Error {
  constructor(code, message = "", details = {}) {
    super(`${code}: ${message}`);
    Object.assign(this, { code, details });
  }
}

export class Mad {
  #instance = uuid7().replaceAll("-", "");
  #counts = new Map(); // partition → the last number given
  #waiting = new Map(); // command id → { key, settle } of a request without a reply
  #pushed = new Map(); // session → wakes its watch
  #written = Promise.resolve(); // the last write: one after the other, in order
  #showing = 0; // number of the latest token request
  #granted = () => {}; // ends the wait for its answer

  /** Connect as the MAD *name*, by its token. */
  static async connect(url, name, token) {
    // A MAD's user has no right to CLIENT SETINFO.
    const options = { url, RESP: 2, disableClientInfo: true, name: `mad-${name}` };
    const mad = Object.assign(new Mad(), { name, token, closed: false });
    [mad.bus, mad.hints] = [createClient(options), createClient(options)];
    for (const one of [mad.bus, mad.hints]) await one.on("error", () => {}).connect();
    const [partitions] = await mad.bus.sendCommand(["HMGET", "eb:config", "partitions"]);
    if (partitions === null) throw new EverbusError("unavailable", "no manager yet");
    mad.partitions = Number(partitions);
    // Not allowed, and not needed, where an operator has entered the MAD.
    await mad.bus.sendCommand(["HSETNX", "eb:mads", name, "{}"]).catch(() => {});
    await mad.bus.sendCommand(["PUBLISH", "eb:news", "mads"]).catch(() => {});
    const channel = `eb:wake:${name}:${mad.#instance}`;
    await mad.hints.subscribe(channel, (message) => mad.#hear(message), true);
    await mad.#present();
    mad.sweeper = setInterval(() => mad.#fetch([...mad.#waiting.keys()]), SWEEP_MS);
    return mad;
  }

  create = (user) => this.ask("session.create", uuid7(), { user_id: user });
  append = (session, entry) => this.ask("timeline.append", session, { entry });
  timeline = (session, after = 0) => this.ask("timeline.read", session, { after });

  /** Every event behind *after*, once and in order: "0" from the beginning. */
  async *watch(session, after = "0") {
    while (!this.closed) {
      const pushed = new Promise((wake) => this.#pushed.set(session, wake));
      const body = { after, limit: 200, push: true };
      const page = await this.ask("session.watch", session, body).catch((error) => {
        if (!PASSING.includes(error.code)) throw error;
        return { events: [], next: after, done: true };
      });
      yield* page.events;
      after = page.next;
      // A push is a hint: its loss costs some seconds and no event.
      if (page.done) await Promise.race([pushed, pause(WATCH_MS)]);
    }
  }

  /** Send one command and return the body of its reply. */
  async ask(kind, session, body) {
    encode(body); // What cannot be encoded fails here: a number, once given, is sent.
    const partition = crc32(session) % this.partitions;
    const n = (this.#counts.get(partition) ?? 0) + 1;
    this.#counts.set(partition, n);
    const id = `${this.#instance}.${partition}.${n}`;
    const key = `eb:{${partition}}:reply:${this.name}:${id}`;
    const deadline = Date.now() + TIMEOUT_MS;
    const command = { v: 1, id, kind, session, body, reply: true };
    const reply = await new Promise((settle) => {
      this.#waiting.set(id, { key, settle });
      setTimeout(() => this.#settle({ id, code: "timeout" }), TIMEOUT_MS).unref();
      this.#written = this.#written.then(() => this.#write(partition, command, deadline));
    });
    if ((reply.code ?? "ok") === "ok") return reply.body;
    if (reply.code === "unauthenticated") this.#present().catch(() => {});
    throw new EverbusError(reply.code, reply.message, { ...reply.details, id });
  }

  close() {
    this.closed = true;
    clearInterval(this.sweeper);
    clearTimeout(this.renewal);
    for (const one of [this.bus, this.hints]) one.destroy();
  }

  /** Write one command; again under its number until it is known to be there. */
  async #write(partition, command, deadline) {
    while (!this.closed) {
      const deadline_ms = Math.max(0, deadline - Date.now());
      const packed = Buffer.from(encode({ ...command, deadline_ms, grant: this.grant }));
      const entry = ["XADD", `eb:{${partition}}:in:${this.name}`, "*", "c", packed];
      if (await this.bus.sendCommand(entry).then(() => true, () => false)) return;
      await pause(SWEEP_MS);
    }
  }

  /** Show the token until a manager answers; again before the grant ends. */
  async #present() {
    const showing = ++this.#showing;
    const shown = encode({ instance: this.#instance, token: this.token, showing });
    // SLOWLOG keeps the first 128 bytes of an argument: no token is among them.
    const request = Buffer.concat([Buffer.alloc(128), shown]);
    for (let tries = 3; tries > 0; tries -= 1) {
      const answered = new Promise((granted) => (this.#granted = granted));
      await this.bus.sendCommand(["PUBLISH", `eb:token:${this.name}`, request]);
      const answer = await Promise.race([answered, pause(ANSWER_MS)]);
      if (answer?.refused) throw new EverbusError(...answer.refused);
      if (!answer) continue;
      this.grant = answer.grant;
      const renewal_ms = Math.min(answer.lasts_s * 750, 2 ** 31 - 1);
      clearTimeout(this.renewal);
      this.renewal = setTimeout(() => this.#present().catch(() => {}), renewal_ms);
      return;
    }
    throw new EverbusError("unavailable", "no manager answered to the token");
  }

  /** Take a message of the wake-up channel: a list of replies, ids and maps. */
  #hear(message) {
    for (const carried of decode(message)) {
      if (carried instanceof Uint8Array) this.#settle(decode(carried));
      else if (typeof carried === "string") this.#fetch([carried]);
      else if (carried.showing === this.#showing) this.#granted(carried);
      else if (carried.events) this.#pushed.get(carried.session)?.();
    }
  }

  /** Fetch replies from their streams, where they lie until they are unlinked. */
  #fetch(ids) {
    for (const id of ids.filter((one) => this.#waiting.has(one))) {
      const read = ["XREAD", "COUNT", "1", "STREAMS", this.#waiting.get(id).key, "0"];
      this.bus.sendCommand(read, AS_BYTES).then((found) => {
        if (found?.length) this.#settle(decode(found[0][1][0][1][1]));
      }, () => {});
    }
  }

  #settle(reply) {
    const waiting = this.#waiting.get(reply.id);
    if (!this.#waiting.delete(reply.id)) return;
    waiting.settle(reply);
    this.bus.sendCommand(["UNLINK", waiting.key]).catch(() => {});
  }
}
