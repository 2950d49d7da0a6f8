/**
 * Elements from values. Text gets into the page as text only, never as markup: every
 * name, id, tag and entry was written by somebody else.
 */

const SVG = "http://www.w3.org/2000/svg";

/** An element with *properties* (attributes, and listeners as functions) and *children*. */
export function el(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** Replace the content of *node*; null and undefined are left out. */
export function fill(node, ...children) {
  node.replaceChildren();
  return filled(node, {}, children);
}

/** The same as `el` for SVG. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else if (/^on|^style$|^srcdoc$/i.test(name)) throw new TypeError(`no attribute ${name}`);
    else if (name === "href" && !/^(#|docs$)/.test(value)) throw new TypeError("a link leads within");
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((one) => one !== null && one !== undefined)
    .map((one) => (one instanceof Node ? one : String(one))));
  return node;
}

/** A hash link, each part and parameter encoded. */
export function link(parts, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value);
  const search = new URLSearchParams(given).toString();
  return `#/${parts.map(encodeURIComponent).join("/")}${search ? `?${search}` : ""}`;
}

const DATE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

/** A time of the bus, in this browser's zone; the exact one as its title. */
export function moment(text, { clock = false } = {}) {
  const at = new Date(text);
  if (!text || Number.isNaN(at.getTime())) return el("time", {}, "–");
  const today = at.toDateString() === new Date().toDateString();
  const shown = (clock && today ? CLOCK : DATE).format(at);
  return el("time", { datetime: at.toISOString(), title: String(text) }, shown);
}

/** Terms and values. */
export function facts(pairs) {
  return el("dl", {}, pairs.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))));
}

export const number = (value) => new Intl.NumberFormat().format(value);

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** A size for people. */
export function bytes(value) {
  const power = value > 0 ? Math.min(UNITS.length - 1, Math.floor(Math.log2(value) / 10)) : 0;
  const scaled = value / 1024 ** power;
  return `${scaled.toFixed(power && scaled < 10 ? 1 : 0)} ${UNITS[power]}`;
}

const CLIP = 4_000;
const MOST = 300_000;

/** *text* in a *tag*; a long one is cut, with a button for the rest. */
export function clipped(tag, text) {
  const shown = el(tag, {}, text.slice(0, CLIP));
  if (text.length <= CLIP) return shown;
  const all = el("button", { type: "button", class: "plain small", click: () => {
    shown.textContent = text.slice(0, MOST);
    all.remove();
  } }, `Show all ${number(text.length)} characters`);
  return el("div", {}, shown, all);
}

/** A JSON value as text. */
export const json = (value) => JSON.stringify(value, null, 2) ?? "";
