/**
 * What the pages share: an element whose requests end when the user leaves it.
 */

import { el } from "./dom.js";
import { problemBox } from "./problem.js";

export class Page extends HTMLElement {
  #leaving = new AbortController();
  query = new URLSearchParams();

  /** Aborts when the user leaves this page. */
  get signal() {
    return this.#leaving.signal;
  }

  connectedCallback() {
    this.attempt(() => this.open());
  }

  disconnectedCallback() {
    this.#leaving.abort();
  }

  /** Run *step*; show what it is refused with in *place*. */
  async attempt(step, place = this) {
    try {
      return await step();
    } catch (problem) {
      if (this.signal.aborted) return undefined;
      place.querySelector(":scope > eb-problem")?.remove();
      place.append(problemBox(problem));
      return undefined;
    }
  }
}

/** The heading of a page, which gets the focus when it opens. */
export const heading = (text) => el("h1", { tabindex: "-1" }, text);

/** A notice while the bus is away, else null. */
export function sourceNotice({ source, behindS }) {
  if (source === "bus") return null;
  return el("p", { class: "notice", role: "status" },
    `The bus is away: this is from MongoDB, as it was about ${Math.ceil(behindS)} s ago or earlier. Nothing can be changed until it is back.`);
}
