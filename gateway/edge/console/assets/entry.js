/**
 * One timeline entry as a message: who said what, with tool calls and results folded.
 *
 * An entry is any JSON value. Shapes of the usual agent frameworks are known; all others
 * are shown as JSON.
 */

import { clipped, el, json, link, moment } from "./dom.js";

const MOST_PARTS = 20;
const ROLES = ["user", "assistant", "system", "tool"];
const RESULTS = ["tool_result", "function_call_output", "tool_output"];
const SHOWN = ["role", "content", "text", "message", "tool_calls", "function_call", "name", "type", "tool_call_id"];
const CALLS = ["tool_use", "tool_call", "function_call"];

/** The list item of a timeline entry. */
export function entryItem(session, { seq, at, author, entry, principal, command_id }) {
  const role = roleOf(entry);
  const shown = partsOf(entry, role);
  const request = command_id ? el("a", { href: link(["sessions", session, "requests", command_id], { seq }) }, "request") : null;
  const head = el("header", {}, el("b", {}, author), role ? el("span", {}, role) : null,
    el("span", {}, `#${seq}`), moment(at, { clock: true }),
    principal && principal !== author ? el("span", {}, `for ${principal}`) : null, request);
  const known = ROLES.includes(role) ? role : "";
  return el("li", { class: `entry ${known}`, "data-seq": seq }, head, shown.slice(0, MOST_PARTS).map(partElement),
    shown.length > MOST_PARTS ? folded("the whole entry", json(entry)) : null);
}

function roleOf(entry) {
  if (!isObject(entry)) return "";
  if (RESULTS.includes(entry.type)) return "tool";
  return typeof entry.role === "string" ? entry.role.slice(0, 40) : "";
}

/** The parts of *entry*: `{text}` or `{summary, folded}`. */
function partsOf(entry, role) {
  if (typeof entry === "string") return [{ text: entry }];
  if (!isObject(entry)) return [{ summary: "value", folded: json(entry), open: true }];
  if (CALLS.includes(entry.type) || RESULTS.includes(entry.type)) return [blockPart(entry)];
  const said = entry.content ?? entry.text ?? entry.message;
  const parts = role === "tool" ? [resultPart(entry.name, said)] : saidParts(said);
  for (const one of Array.isArray(entry.tool_calls) ? entry.tool_calls : []) parts.push(callPart(one));
  if (isObject(entry.function_call)) parts.push(callPart(entry.function_call));
  if (!parts.length) return [{ summary: "entry", folded: json(entry), open: true }];
  const others = Object.entries(entry).filter(([name]) => !SHOWN.includes(name));
  return others.length ? [...parts, { summary: "other fields", folded: json(Object.fromEntries(others)) }] : parts;
}

function saidParts(said) {
  if (said === null || said === undefined || said === "") return [];
  if (typeof said === "string") return [{ text: said }];
  return Array.isArray(said) ? said.map(blockPart) : [{ summary: "content", folded: json(said), open: true }];
}

function blockPart(block) {
  if (typeof block === "string") return { text: block };
  if (!isObject(block)) return { summary: "value", folded: json(block) };
  if (CALLS.includes(block.type)) return callPart(block);
  if (RESULTS.includes(block.type)) return resultPart(block.name ?? block.tool_use_id ?? block.call_id, block.content ?? block.output);
  if (typeof block.text === "string") return { text: block.text };
  return { summary: String(block.type ?? "block").slice(0, 80), folded: json(block) };
}

function callPart(call) {
  const named = isObject(call) && isObject(call.function) ? call.function : call;
  const name = isObject(named) ? named.name : "";
  const given = isObject(named) ? (named.arguments ?? named.input ?? named.args ?? {}) : named;
  return { summary: `calls ${short(name, "a tool")}`, folded: pretty(given) };
}

function resultPart(name, value) {
  return { summary: `result of ${short(name, "a tool")}`, folded: pretty(value) };
}

const short = (name, otherwise) => (typeof name === "string" && name ? name.slice(0, 80) : otherwise);

/** JSON in a string is shown as the JSON it is. */
function pretty(value) {
  if (typeof value !== "string") return json(value);
  try {
    return json(JSON.parse(value));
  } catch {
    return value;
  }
}

function partElement({ text, summary, folded: content, open }) {
  return text === undefined ? folded(summary, content, open) : clipped("p", text);
}

/** Folded content, which enters the page when it is opened. */
export function folded(summary, content, open = false) {
  const details = el("details", { open }, el("summary", {}, summary));
  const fill = () => {
    if (details.open && details.children.length === 1) details.append(clipped("pre", content));
  };
  details.addEventListener("toggle", fill);
  fill();
  return details;
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
