/**
 * A session's checkpoints: a page of them, with a restore that asks first.
 */

import { access } from "./access.js";
import { call, sessionPath, writeKey } from "./api.js";
import { el, fill, moment, number } from "./dom.js";
import { problemBox } from "./problem.js";

const LIMIT = 10;

class Checkpoints extends HTMLElement {
  session = "";
  signal = null;
  version = 0;

  connectedCallback() {
    this.classList.add("card");
    this.list = el("div");
    this.trouble = el("div", { role: "status" });
    fill(this, el("h2", {}, "Checkpoints"), this.list, this.trouble, access.mayWrite ? this.#form() : null);
  }

  /** Show the newest ones, or those *before* one. */
  async load(before = "") {
    const path = sessionPath(this.session, "checkpoints");
    const { value } = await call(path, { query: { limit: LIMIT, before }, signal: this.signal });
    const items = value.checkpoints.map((one) => this.#item(one));
    const turn = (text, to) => el("button", { type: "button", click: () => this.#attempt(() => this.load(to)) }, text);
    fill(this.list,
      items.length ? el("ul", { class: "plain" }, items) : el("p", { class: "quiet" }, "None yet."),
      before ? turn("Newest", "") : null, value.next ? turn("Older", value.next) : null);
  }

  #item(checkpoint) {
    const { name, version, last_seq: seq, at, author } = checkpoint;
    const restore = el("button", { type: "button", click: () => this.#ask(checkpoint) }, "Restore…");
    return el("li", {}, el("div", { class: "head" }, el("b", {}, name || "(no name)"), access.mayWrite ? restore : null),
      el("div", { class: "small quiet" }, `version ${number(version)}, seq ${number(seq)}, by ${author}, `, moment(at)));
  }

  #form() {
    const input = el("input", { name: "name", maxlength: 64, "aria-label": "Name of a new checkpoint" });
    const submit = (event) => {
      event.preventDefault();
      const body = { name: input.value };
      const headers = { "Idempotency-Key": writeKey() };
      this.#attempt(async () => {
        await call(sessionPath(this.session, "checkpoints"), { method: "POST", body, headers });
        input.value = "";
        await this.load();
      });
    };
    return el("form", { class: "stack", submit }, el("label", {}, "Name of a new checkpoint", input),
      el("div", {}, el("button", {}, "Create checkpoint")));
  }

  #ask(checkpoint) {
    // As the user saw it: another version than this one is refused.
    const version = this.version;
    const close = (value) => () => dialog.close(value);
    const dialog = el("dialog", { "aria-label": "Restore a checkpoint", close: () => {
      dialog.remove();
      if (dialog.returnValue === "restore") this.#restore(checkpoint, version);
    } },
    el("h2", {}, `Restore “${checkpoint.name || "(no name)"}”?`),
    el("p", {}, `Summary, work in progress, tags and fields become those of version ${number(checkpoint.version)} again, `
      + `as version ${number(version + 1)}. The conversation stays whole, and version ${number(version)} can still be read.`),
    el("div", { class: "row" }, el("button", { type: "button", click: close("") }, "Cancel"),
      el("button", { type: "button", class: "main", click: close("restore") }, "Restore")));
    this.append(dialog);
    dialog.showModal();
  }

  #restore(checkpoint, version) {
    const path = sessionPath(this.session, "checkpoints", checkpoint.id, "restore");
    const headers = { "If-Match": `"${version}"`, "Idempotency-Key": writeKey() };
    this.#attempt(async () => {
      const { value } = await call(path, { method: "POST", headers });
      this.version = value.version;
      this.trouble.replaceChildren(el("p", { class: "pass" }, `Restored, as version ${number(value.version)}.`));
    });
  }

  async #attempt(step) {
    this.trouble.replaceChildren();
    try {
      await step();
    } catch (problem) {
      if (!this.signal.aborted) this.trouble.replaceChildren(problemBox(problem));
    }
  }
}

customElements.define("eb-checkpoints", Checkpoints);
