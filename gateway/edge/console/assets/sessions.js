/**
 * The list of sessions, with the filters of `GET /sessions`; its address holds them.
 */

import { call } from "./api.js";
import { el, fill, link, moment, number } from "./dom.js";
import { heading, Page, sourceNotice } from "./page.js";
import { tierOf } from "./tiers.js";

const LIMIT = 25;
const FILTERS = ["owner", "participant", "tag", "text", "state", "active_since", "active_before"];
const STATES = ["", "active", "dormant", "archived"];

class Sessions extends Page {
  async open() {
    const wanted = Object.fromEntries([...FILTERS, "cursor"].map((name) => [name, this.query.get(name)]));
    const results = el("section", { class: "card", "aria-busy": "true" }, el("p", { class: "quiet" }, "Looking…"));
    fill(this, heading("Sessions"), filterForm(wanted), results);
    await this.attempt(async () => {
      const query = { ...wanted, limit: LIMIT };
      const answer = await call("sessions", { query, signal: this.signal });
      fill(results, sourceNotice(answer), table(answer.value.sessions), pager(wanted, answer.value.next));
    }, results);
    results.removeAttribute("aria-busy");
  }
}

function filterForm(wanted) {
  const search = (event) => {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(event.target));
    for (const name of ["active_since", "active_before"]) {
      if (given[name]) given[name] = new Date(given[name]).toISOString();
    }
    location.hash = link(["sessions"], given);
  };
  const field = (name, label, properties = {}, kind = null) =>
    el("label", { class: kind }, label, el("input", { name, value: wanted[name], ...properties }));
  const states = STATES.map((one) => el("option", { value: one, selected: one === (wanted.state ?? "") }, one || "any"));
  const date = (name, label) => field(name, label, { type: "datetime-local", value: local(wanted[name]) }, "wide");
  return el("form", { class: "card filters", role: "search", submit: search },
    field("owner", "Owner", { maxlength: 255 }), field("participant", "Participant", { maxlength: 64 }),
    field("tag", "Tag", { maxlength: 64 }), field("text", "Text", { maxlength: 256 }),
    el("label", {}, "State", el("select", { name: "state" }, states)),
    date("active_since", "Active since"), date("active_before", "Active before"),
    el("div", { class: "row" }, el("button", { class: "main" }, "Search"), el("a", { class: "button", href: "#/sessions" }, "Clear")));
}

/** A time as the input of dates takes it, in this browser's zone. */
function local(text) {
  const at = new Date(text ?? "");
  if (Number.isNaN(at.getTime())) return null;
  return new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

const COLUMNS = [
  ["Session", (one) => el("a", { class: "id", href: link(["sessions", one.id]) }, one.id)],
  ["Owner", (one) => one.owner_id],
  ["State", (one) => one.state],
  ["Tier", (one) => tierOf(one)],
  ["Version", (one) => number(one.version), "number"],
  ["Entries", (one) => number(one.last_seq), "number"],
  ["Tags", (one) => el("span", {}, one.tags.map((tag) => el("span", { class: "tag" }, tag)))],
  ["Last active", (one) => moment(one.last_active)],
];

function table(sessions) {
  if (!sessions.length) return el("p", {}, "No session matches. A session shows here when MongoDB has it, about a second after its creation.");
  const head = el("tr", {}, COLUMNS.map(([name, , kind]) => el("th", { scope: "col", class: kind }, name)));
  const rows = sessions.map((one) => el("tr", {}, COLUMNS.map(([name, shown, kind]) =>
    el("td", { class: kind, "data-label": name }, el("span", {}, shown(one))))));
  return el("table", { class: "cards" }, el("thead", {}, head), el("tbody", {}, rows));
}

function pager(wanted, next) {
  const { cursor, ...filters } = wanted;
  const first = cursor ? el("a", { class: "button", href: link(["sessions"], filters) }, "First page") : null;
  const more = next ? el("a", { class: "button", href: link(["sessions"], { ...filters, cursor: next }) }, "Next page") : null;
  return first || more ? el("nav", { class: "row", "aria-label": "Pages of the list" }, first, more) : null;
}

customElements.define("eb-sessions", Sessions);
