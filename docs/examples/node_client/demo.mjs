/**
 * One conversation by the client beside it.
 *
 * Run it: start `everbus dev`. Then, in another terminal:
 *
 *     set -a; . .everbus/env; set +a
 *     npm install && node demo.mjs
 */
import { Mad } from "./client.mjs";

const { EVERBUS_REDIS_URL, EVERBUS_TOKEN, EVERBUS_MAD = "node" } = process.env;
const mad = await Mad.connect(EVERBUS_REDIS_URL, EVERBUS_MAD, EVERBUS_TOKEN);
const session = await mad.create("ada");
console.log("session", session.id);
for (const text of ["The moon pulls.", "And the sun."]) {
  const { seq } = await mad.append(session.id, { text });
  console.log("appended", seq);
}
for (const one of (await mad.timeline(session.id)).entries) {
  console.log("read", one.seq, one.author, one.entry.text);
}
for await (const event of mad.watch(session.id)) {
  console.log("event", event.kind, event.entry?.text ?? "");
  if (event.entry?.text === "Bye.") break;
  if (event.seq === 2) await mad.append(session.id, { text: "Bye." });
}
mad.close();
