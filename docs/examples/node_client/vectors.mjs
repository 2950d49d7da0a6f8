/**
 * Whether a codec agrees with docs/reference/vectors.json: run it for a codec of yours.
 *
 * Run it: `npm install && node vectors.mjs ../../reference/vectors.json`
 */
import { deepStrictEqual } from "node:assert";
import { readFileSync } from "node:fs";
import { crc32 } from "node:zlib";
import { decode, encode } from "@msgpack/msgpack";

const vectors = JSON.parse(readFileSync(process.argv[2]));

/** A decoded value as the vectors write it: bytes as {"$hex"}, times as text. */
function plain(value) {
  if (value instanceof Uint8Array) return { $hex: Buffer.from(value).toString("hex") };
  if (value instanceof Date) return value.toISOString();
  if (Array.isArray(value)) return value.map(plain);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, plain(one)]));
}

for (const { name, json, msgpack } of vectors.values) {
  const value = decode(Buffer.from(msgpack, "hex"));
  deepStrictEqual(plain(value), json, name);
  deepStrictEqual(plain(decode(encode(value))), json, name);
}
for (const { session, partitions, partition } of vectors.partitions) {
  deepStrictEqual(crc32(session) % partitions, partition, session);
}
console.log("agree", vectors.values.length, vectors.partitions.length);
