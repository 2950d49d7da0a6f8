/**
 * A refusal as the user sees it: its code, and what to do.
 */

import { el, fill } from "./dom.js";

// Remedies of this page, for codes whose text speaks to programs.
const REMEDIES = {
  version_conflict: "Somebody has changed the session meanwhile. Look at it as it is now, then decide again.",
  forbidden: "Ask the session's owner or an admin, or sign in with another token.",
  overloaded: "Wait a moment, then try again.",
  unavailable: "Try again in a moment; the Health page says what is away.",
  expired: "Try again.",
};

class ProblemBox extends HTMLElement {
  problem = { code: "", message: "" };
  remedy = "";

  connectedCallback() {
    const { code = "defect", message, fields = {} } = this.problem;
    const remedy = this.remedy || REMEDIES[code] || "";
    const id = fields.request_id ? el("div", { class: "small quiet" }, `request ${fields.request_id}`) : null;
    this.setAttribute("role", "alert");
    fill(this, el("div", {}, el("b", {}, code), ` – ${message}`), remedy ? el("div", {}, remedy) : null, id);
  }
}

/** A box for *problem*: a refusal of the edge, or a fault of this page. */
export function problemBox(problem, remedy = "") {
  const box = document.createElement("eb-problem");
  box.problem = problem.code ? problem : { code: "page_fault", message: `${problem.message}; reload the page` };
  box.remedy = remedy;
  return box;
}

customElements.define("eb-problem", ProblemBox);
