/**
 * SVG charts: lines over time, a heat map, bars. Each says in words what it shows.
 */

import { el, number, svg } from "./dom.js";

const WIDTH = 520;
const HEIGHT = 160;
const LEFT = 52;
const BOTTOM = 20;
const CLASSES = ["", " s2", " s3"];

function framed(caption, label, parts, height = HEIGHT) {
  const drawing = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label }, parts);
  return el("figure", {}, drawing, el("figcaption", {}, caption));
}

const shown = (value) => (value >= 10 ? number(Math.round(value)) : String(Math.round(value * 100) / 100));
const clock = (atMs) => new Date(atMs).toLocaleTimeString();

function axis(most, firstMs, lastMs) {
  const base = HEIGHT - BOTTOM;
  const lines = [0, 0.5, 1].map((part) => {
    const y = base - part * (base - 10);
    return [svg("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y, y2: y }),
      svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, shown(most * part))];
  });
  return [lines, times(firstMs, lastMs, HEIGHT)];
}

function times(firstMs, lastMs, height) {
  return [svg("text", { x: LEFT, y: height - 5 }, clock(firstMs)),
    svg("text", { x: WIDTH - 2, y: height - 5, "text-anchor": "end" }, clock(lastMs))];
}

/** Lines of *names* over *steps*, which have `atMs` and a value of each name. */
export function lineChart(caption, names, steps) {
  const most = Math.max(1, ...steps.flatMap((one) => names.map((name) => one[name])));
  const firstMs = steps[0].atMs;
  const spanMs = Math.max(1, steps.at(-1).atMs - firstMs);
  const x = (atMs) => LEFT + ((atMs - firstMs) / spanMs) * (WIDTH - LEFT - 4);
  const y = (value) => HEIGHT - BOTTOM - (value / most) * (HEIGHT - BOTTOM - 10);
  const lines = names.map((name, n) => svg("polyline", { class: `line${CLASSES[n]}`,
    points: steps.map((one) => `${x(one.atMs).toFixed(1)},${y(one[name]).toFixed(1)}`).join(" ") }));
  const last = steps.at(-1);
  const told = names.map((name) => `${name} ${shown(last[name])}`).join(", ");
  const key = el("span", { class: "key" }, names.map((name, n) => [el("i", { class: CLASSES[n].trim() }), `${name} ${shown(last[name])}`]));
  return framed([caption, key], `${caption}: ${told}`, [axis(most, firstMs, firstMs + spanMs), lines]);
}

/** How many requests took how long: time to the right, latency upwards. */
export function heatMap(caption, steps) {
  const bounds = steps[0].cells.map(({ le }) => le);
  const most = Math.max(1, ...steps.flatMap((one) => one.cells.map(({ count }) => count)));
  const rowHeight = 11;
  const height = bounds.length * rowHeight + BOTTOM + 4;
  const width = (WIDTH - LEFT) / steps.length;
  const cells = steps.flatMap((one, column) => one.cells.map(({ le, count }, row) => count > 0 && svg("rect", { class: "cell",
    x: LEFT + column * width, y: (bounds.length - 1 - row) * rowHeight, width: Math.max(1, width - 1), height: rowHeight - 1,
    "fill-opacity": (0.15 + 0.85 * (count / most)).toFixed(2) }, svg("title", {}, `${clock(one.atMs)}: ${count} within ${secondsText(le)}`)))).filter(Boolean);
  const labels = bounds.map((le, row) => row % 3 === 0 ? svg("text", { x: LEFT - 6, y: (bounds.length - row) * rowHeight - 2, "text-anchor": "end" }, secondsText(le)) : null);
  const all = steps.reduce((sum, one) => sum + one.cells.reduce((some, { count }) => some + count, 0), 0);
  return framed(caption, `${caption}: ${all} requests`, [labels, cells, times(steps[0].atMs, steps.at(-1).atMs, height)], height);
}

function secondsText(le) {
  const seconds = Number(le);
  if (!Number.isFinite(seconds)) return "> 10 s";
  return seconds < 1 ? `${seconds * 1000} ms` : `${seconds} s`;
}

/** Bars of *rows*: `{name, value, text}`. */
export function barChart(caption, rows) {
  const most = Math.max(1, ...rows.map(({ value }) => value));
  const room = WIDTH - LEFT - 200;
  const bars = rows.map(({ name, value, text }, n) => {
    const width = Math.max(1, (value / most) * room);
    return [svg("text", { x: LEFT - 6, y: n * 26 + 18, "text-anchor": "end" }, name),
      svg("rect", { class: "fill", x: LEFT, y: n * 26 + 5, width, height: 18, rx: 3 }),
      svg("text", { x: LEFT + width + 8, y: n * 26 + 18 }, text)];
  });
  return framed(caption, `${caption}: ${rows.map(({ name, text }) => `${name} ${text}`).join("; ")}`, bars, rows.length * 26 + 8);
}
