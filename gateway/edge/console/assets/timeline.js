/**
 * A session's timeline as a conversation: a window on it, which follows its end while the
 * user does.
 */

import { call, sessionPath } from "./api.js";
import { el, number } from "./dom.js";
import { entryItem } from "./entry.js";
import { EntryWindow } from "./entry_window.js";
import { problemBox } from "./problem.js";

const PAGE = 50;
const NEAR_PX = 80;

class Timeline extends HTMLElement {
  session = "";
  signal = null;
  #window = new EntryWindow();
  #items = new Map();
  #newest = 0;
  #busy = false;

  connectedCallback() {
    this.list = el("ol");
    this.box = el("div", { class: "timeline", tabindex: "0", role: "log", "aria-label": "Conversation" }, this.list);
    const button = (text, step) => el("button", { type: "button", hidden: true, click: () => this.#step(step) }, text);
    this.older = button("Older entries", () => this.#loadOlder());
    this.newer = button("Newer entries", () => this.#loadNewer());
    this.newest = button("Newest entries", () => this.load());
    this.count = el("span", { class: "small quiet" });
    this.trouble = el("div");
    this.replaceChildren(el("div", { class: "row" }, this.older, this.count), this.box,
      el("div", { class: "row" }, this.newer, this.newest), this.trouble);
  }

  /** Show the newest entries. */
  async load() {
    const page = await this.#page({ newest_first: true });
    this.#window.clear();
    this.#items.clear();
    this.list.replaceChildren();
    this.#newest = Math.max(this.#newest, page.at(-1)?.seq ?? 0);
    this.#add(page, "append");
    this.#toEnd();
  }

  /** Show a live entry, unless the user reads elsewhere: then it is counted. */
  add(entry) {
    const atEnd = this.#window.last === this.#newest;
    if (entry.seq <= this.#newest) return;
    const next = entry.seq === this.#newest + 1;
    this.#newest = entry.seq;
    const reads = !this.#nearEnd();
    if (!atEnd || !next || (reads && this.#window.full)) return this.#label();
    this.#add([entry], "append");
    this.#items.get(entry.seq)?.classList.add("fresh");
    if (!reads) this.#toEnd();
  }

  async #step(step) {
    if (this.#busy) return;
    this.#busy = true;
    this.trouble.replaceChildren();
    try {
      await step();
    } catch (problem) {
      if (!this.signal.aborted) this.trouble.replaceChildren(problemBox(problem));
    } finally {
      this.#busy = false;
    }
  }

  async #page(query) {
    const path = sessionPath(this.session, "timeline");
    const { value } = await call(path, { query: { limit: PAGE, ...query }, signal: this.signal });
    return query.newest_first ? value.entries.reverse() : value.entries;
  }

  async #loadOlder() {
    const page = await this.#page({ newest_first: true, before: this.#window.first });
    const held = this.#items.get(this.#window.first);
    const before = held?.getBoundingClientRect().top ?? 0;
    this.#add(page, "prepend");
    // What the user was reading stays where it is.
    if (held) this.box.scrollTop += held.getBoundingClientRect().top - before;
  }

  async #loadNewer() {
    this.#add(await this.#page({ after: this.#window.last }), "append");
  }

  #add(entries, where) {
    const made = entries.filter((one) => !this.#items.has(one.seq)).map((one) => {
      const item = entryItem(this.session, one);
      this.#items.set(one.seq, item);
      return item;
    });
    const gone = this.#window[where](entries);
    this.list[where](...made);
    for (const seq of gone) {
      this.#items.get(seq)?.remove();
      this.#items.delete(seq);
    }
    this.#newest = Math.max(this.#newest, this.#window.last);
    this.#label();
  }

  #label() {
    const { first, last } = this.#window;
    const behind = this.#newest - last;
    this.older.hidden = first <= 1;
    this.newer.hidden = this.newest.hidden = behind <= 0;
    this.newest.textContent = behind > 0 ? `Newest entries (${number(behind)} more)` : "Newest entries";
    this.count.textContent = last ? `Entries ${number(first)} to ${number(last)} of ${number(this.#newest)}` : "No entries yet.";
  }

  #nearEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.box;
    return scrollHeight - scrollTop - clientHeight < NEAR_PX;
  }

  #toEnd() {
    this.box.scrollTop = this.box.scrollHeight;
  }
}

customElements.define("eb-timeline", Timeline);
