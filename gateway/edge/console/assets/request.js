/**
 * The life of one command, as far as the session tells it: who sent it for whom, when it
 * took effect, and what it changed.
 */

import { call, sessionPath } from "./api.js";
import { clipped, el, facts, fill, json, link, moment, number } from "./dom.js";
import { entryItem } from "./entry.js";
import { heading, Page } from "./page.js";

class Request extends Page {
  command = "";

  async open() {
    const place = el("section", { class: "card stack" }, el("p", { class: "quiet" }, "Looking…"));
    const back = el("a", { href: link(["sessions", this.session]) }, `Session ${this.session}`);
    fill(this, el("div", { class: "head" }, heading(`Command ${this.command}`), back), place, forgotten(this.command));
    await this.attempt(() => this.#look(place), place);
  }

  async #look(place) {
    const version = Number(this.query.get("version"));
    const seq = Number(this.query.get("seq"));
    const [changes, entry] = await Promise.all([version > 1 ? this.#changes(version) : [], seq > 0 ? this.#entry(seq) : null]);
    const parts = changes.filter((one) => one.command_id === this.command).map(changePart);
    if (entry) parts.push(entryPart(this.session, entry));
    fill(place, parts.length ? parts : el("p", {}, "The session's history has no change of state by this command: it appended, broadcast, or made a checkpoint."));
  }

  async #changes(version) {
    const query = { from_version: version - 1, to_version: version };
    const { value } = await call(sessionPath(this.session, "diff"), { query, signal: this.signal });
    return value.changes;
  }

  async #entry(seq) {
    const query = { after: seq - 1, before: seq + 1, limit: 1 };
    const { value } = await call(sessionPath(this.session, "timeline"), { query, signal: this.signal });
    return value.entries[0] ?? null;
  }
}

function changePart(change) {
  return el("div", { class: "stack" }, facts([["Kind", change.kind], ["Published by", change.mad], ["For", change.principal],
    ["Committed", moment(change.at)], ["Version", `${number(change.version - 1)} → ${number(change.version)}`], ["Seq", number(change.seq)]]),
  el("h2", {}, "What it changed"), clipped("pre", json(change.patch)));
}

function entryPart(session, entry) {
  return el("div", { class: "stack" }, facts([["Kind", "timeline.appended"], ["Published by", entry.author], ["Committed", moment(entry.at)], ["Seq", number(entry.seq)]]),
    el("h2", {}, "What it appended"), el("ol", { class: "plain" }, entryItem(session, entry)));
}

function forgotten(command) {
  return el("p", { class: "small quiet" }, "When it was published, replied to and drained: ", el("code", {}, `everbus request show ${command}`), ", on a machine with the managers' settings.");
}

customElements.define("eb-request", Request);
