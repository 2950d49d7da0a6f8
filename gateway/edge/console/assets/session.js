/**
 * One session, live: its facts, conversation, participants and checkpoints.
 *
 * The stream is opened before the first read, so that no change falls between the two.
 */

import { access } from "./access.js";
import { call, follow, pause, Problem, sessionPath } from "./api.js";
import { clipped, el, facts, fill, json, link, moment, number } from "./dom.js";
import { folded } from "./entry.js";
import { heading, Page, sourceNotice } from "./page.js";
import { problemBox } from "./problem.js";
import "./checkpoints.js";
import { tierOfRead } from "./tiers.js";
import "./timeline.js";

const REFRESH_MS = 300;
const MOST_EVENTS = 20;
const STATES = { live: "live", lost: "connection lost, connecting again", ended: "ended", begin: "connecting" };

class Session extends Page {
  #loaded = "";
  #refreshing = false;

  async open() {
    this.live = el("span", { class: "live", role: "status" });
    this.head = el("section", { class: "card stack" }, el("p", { class: "quiet" }, "Reading…"));
    this.timeline = document.createElement("eb-timeline");
    this.checkpoints = document.createElement("eb-checkpoints");
    for (const part of [this.timeline, this.checkpoints]) Object.assign(part, { session: this.session, signal: this.signal });
    this.people = el("section", { class: "card" });
    this.events = el("ul", { class: "plain small" });
    const activity = el("section", { class: "card" }, el("h2", {}, "Events since you opened this page"), this.events);
    fill(this, el("div", { class: "head" }, heading(this.session), this.live), this.head,
      el("div", { class: "columns" },
        el("section", { class: "card" }, el("h2", {}, "Conversation"), this.timeline),
        el("div", { class: "side" }, this.people, this.checkpoints, activity)));
    this.#mark("begin");
    try {
      await this.#follow();
    } catch (problem) {
      this.#mark("ended");
      // Nothing of it was to be had: no empty parts around the refusal.
      if (!this.#loaded) fill(this, this.firstElementChild);
      throw problem;
    }
  }

  async #follow() {
    for await (const { event, data } of follow(this.session, { signal: this.signal })) {
      if (event === "stream.opened") {
        this.#mark("live");
        if (this.#loaded !== "live") await this.#load("live");
      } else if (event === "lost") {
        this.#mark("lost");
        // Reads may still be answered, from MongoDB.
        if (!this.#loaded) await this.attempt(() => this.#load("lost"), this.head);
      } else if (event === "end") {
        this.#end(data);
      } else {
        this.#show(data);
      }
    }
  }

  async #load(state) {
    await this.#read();
    await this.timeline.load();
    await this.checkpoints.load();
    this.#loaded = state;
  }

  async #read() {
    const answer = await call(sessionPath(this.session), { signal: this.signal });
    const session = answer.value;
    // An answer that a later one has overtaken.
    if (session.version < this.checkpoints.version) return;
    this.checkpoints.version = session.version;
    this.version = el("span", {}, number(session.version));
    this.lastSeq = el("span", {}, number(session.last_seq));
    this.active = el("span", {}, moment(session.last_active));
    const folds = foldsIn(this.head);
    fill(this.head, sourceNotice(answer), this.#facts(session, answer.source), tags(session), contents(session, folds.open));
    // What the user had opened stays open, and the focus where it was.
    foldsIn(this.head).summaries.get(folds.focused)?.focus();
    this.people.replaceChildren(el("h2", {}, "Participants"), participants(session));
  }

  #facts(session, source) {
    return facts([
      ["Owner", session.owner_id], ["State", el("span", { class: "state" }, session.state)],
      ["Tier", tierOfRead(source)], ["Version", this.version], ["Last seq", this.lastSeq],
      ...(session.tenant ? [["Tenant", session.tenant]] : []),
      ["Created", moment(session.created_at)], ["Last active", this.active],
      ["May read and write", session.acl.join(", ") || "its owner"],
    ]);
  }

  #show(event) {
    if (event.kind === "timeline.appended") this.timeline.add({ ...event, author: event.mad, entry: event.entry ?? null });
    this.version.textContent = number(event.version);
    this.lastSeq.textContent = number(event.seq);
    this.active.replaceChildren(moment(event.at));
    this.events.prepend(eventItem(this.session, event));
    if (this.events.children.length > MOST_EVENTS) this.events.lastChild.remove();
    if (event.patch) this.#refresh();
    if (event.kind.startsWith("checkpoint.")) this.attempt(() => this.checkpoints.load(), this.checkpoints);
  }

  /** Read the session again: once for however many changes arrive together. */
  async #refresh() {
    if (this.#refreshing) return;
    this.#refreshing = true;
    await pause(REFRESH_MS, this.signal);
    this.#refreshing = false;
    if (this.signal.aborted) return;
    await this.attempt(() => this.#read(), this.head);
  }

  #end({ code, message }) {
    this.#mark("ended");
    const problem = new Problem({ code, detail: message });
    if (code === "unauthenticated") access.signOut(problem);
    else this.head.prepend(problemBox(problem, "This page shows what was last known."));
  }

  #mark(state) {
    this.live.dataset.state = state;
    this.live.textContent = STATES[state];
  }
}

function tags(session) {
  return session.tags.length ? el("div", {}, session.tags.map((tag) => el("a", { class: "tag", href: link(["sessions"], { tag }) }, tag))) : null;
}

function foldsIn(place) {
  const all = [...place.querySelectorAll("details > summary")];
  const named = (some) => some.map((one) => [one.textContent, one]);
  return { summaries: new Map(named(all)), open: new Set(all.filter((one) => one.parentNode.open).map((one) => one.textContent)),
    focused: all.find((one) => one === document.activeElement)?.textContent };
}

function contents(session, open) {
  const parts = [["Summary", session.context_summary], ["Work in progress", session.work_in_progress], ["Fields", session.fields]];
  const filled = parts.filter(([, value]) => Object.keys(value).length);
  return filled.length ? el("div", {}, filled.map(([name, value]) => folded(name, json(value), open.has(name)))) : null;
}

function participants(session) {
  const known = Object.entries(session.participants);
  if (!known.length) return el("p", { class: "quiet" }, "Nobody has joined.");
  return el("ul", { class: "plain" }, known.map(([mad, { role, joined_at: at }]) =>
    el("li", {}, el("b", {}, mad), role ? ` (${role})` : "", el("div", { class: "small quiet" }, "since ", moment(at)))));
}

function eventItem(session, event) {
  const place = event.patch ? { version: event.version } : event.kind === "timeline.appended" ? { seq: event.seq } : {};
  const request = el("a", { href: link(["sessions", session, "requests", event.command_id], place) }, event.kind);
  const message = event.kind === "session.broadcast" ? clipped("pre", json(event.message ?? null)) : null;
  return el("li", {}, request, ` by ${event.mad} `, moment(event.at, { clock: true }), message);
}

customElements.define("eb-session", Session);
