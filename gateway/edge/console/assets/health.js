/**
 * The health of this edge: its readiness and checks, troubles first, each with its remedy.
 */

import { pause, probe } from "./api.js";
import { el, facts, fill, moment } from "./dom.js";
import { heading, Page } from "./page.js";

const EVERY_MS = 5_000;
const GRADES = { fail: 2, warn: 1, pass: 0 };
const CHECKS = {
  service: ["whether this edge can answer reads", "See the other checks: it needs the bus, or MongoDB for reads alone."],
  identity: ["whether it can verify tokens", "See that the issuer's keys (EVERBUS_JWT_JWKS) can be fetched from this host."],
  bus: ["whether Redis answers", "Start Redis, or mend the network to it. Until then reads come from MongoDB and writes are refused; nothing has to be done here."],
  lanes: ["whether each lane has a manager", "Start a manager (everbus manager), or see the managers' logs; everbus lanes shows who owns what."],
  warm: ["whether MongoDB answers", "Start MongoDB, or mend the network to it. Writes go on until the outbox is full; everbus doctor shows how much room is left."],
};

class Health extends Page {
  async open() {
    const content = el("div", { class: "stack", "aria-live": "polite" }, el("p", { class: "quiet" }, "Looking…"));
    fill(this, heading("Health"), content);
    while (!this.signal.aborted) {
      if (!document.hidden) await this.attempt(() => this.#look(content), content);
      await pause(EVERY_MS, this.signal);
    }
  }

  async #look(content) {
    const [ready, health] = await Promise.all(["readyz", "health"].map((path) => probe(path, { signal: this.signal })));
    const report = reportIn(health);
    fill(content, summary(ready, report), report ? checks(report) : elsewhere(), whole());
  }
}

/** The report of /health; null where another port has it. */
function reportIn({ text }) {
  try {
    const report = JSON.parse(text);
    return report.checks ? report : null;
  } catch {
    return null;
  }
}

function summary(ready, report) {
  const why = outputIn(ready.text);
  const state = ready.status === 200 ? el("span", { class: "state pass" }, "ready") : el("span", { class: "state fail" }, "not ready");
  return el("section", { class: "card stack" }, facts([["Readiness", state],
    ...(report ? [["All checks", verdict(report.status)], ["Version", report.version]] : [])]),
  why ? el("p", { class: "notice" }, why) : null);
}

function outputIn(text) {
  try {
    return JSON.parse(text).output ?? "";
  } catch {
    return "";
  }
}

const verdict = (status) => el("span", { class: `state ${status in GRADES ? status : ""}` }, status);

function checks(report) {
  const found = Object.entries(report.checks).map(([name, [result]]) => ({ name, ...result }));
  found.sort((a, b) => (GRADES[b.status] ?? 0) - (GRADES[a.status] ?? 0));
  const head = el("tr", {}, ["Check", "State", "Measured", "Since"].map((name) => el("th", { scope: "col" }, name)));
  const rows = found.map((one) => el("tr", {}, [["Check", name(one)], ["State", state(one)], ["Measured", measured(one)],
    ["Since", moment(one.since)]].map(([label, shown]) => el("td", { "data-label": label }, shown))));
  return el("section", { class: "card" }, el("h2", {}, "Checks of this edge"),
    el("table", { class: "cards" }, el("thead", {}, head), el("tbody", {}, rows)));
}

const name = ({ name: check }) => el("span", {}, el("b", {}, check), el("div", { class: "small quiet" }, CHECKS[check]?.[0] ?? ""));

function state({ name: check, status, output }) {
  const remedy = status === "pass" ? "" : (CHECKS[check]?.[1] ?? "everbus doctor names a remedy.");
  return el("span", {}, verdict(status), output ? el("div", {}, output) : null, remedy ? el("div", { class: "small" }, `→ ${remedy}`) : null);
}

const measured = ({ observedValue: value, observedUnit: unit = "" }) => (value === undefined ? "–" : `${value} ${unit}`);

function elsewhere() {
  return el("p", { class: "card" }, "This edge has its details on a port of its own (EVERBUS_HEALTH_PORT), for operators: ask /health there.");
}

function whole() {
  return el("p", { class: "small quiet" }, "These are the checks of the edge that serves this page. ",
    el("code", {}, "everbus doctor"), " examines the whole bus: managers, lanes, MADs, archiver and tiers.");
}

customElements.define("eb-health", Health);
