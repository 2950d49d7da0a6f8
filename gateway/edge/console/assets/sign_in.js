/**
 * The form for a token; after a refusal it says why, and leads back to the same page.
 */

import { access } from "./access.js";
import { el, fill } from "./dom.js";
import { problemBox } from "./problem.js";

class SignIn extends HTMLElement {
  refusal = null;

  connectedCallback() {
    const input = el("input", { name: "token", type: "password", required: true, autocomplete: "off", spellcheck: "false" });
    const form = el("form", { class: "stack", submit: (event) => {
      event.preventDefault();
      access.signIn(input.value);
    } },
    el("label", {}, "Token", input),
    el("p", { class: "small quiet" }, "It stays in this tab, and is sent to this edge only. ",
      el("code", {}, "everbus token"), " makes one; ", el("code", {}, "everbus dev"),
      " prints an address that brings its own."),
    el("div", {}, el("button", { class: "main" }, "Sign in")));
    const why = this.refusal && problemBox(this.refusal, "Sign in again: you come back to the page where you were.");
    fill(this, el("section", { class: "card stack" }, el("h1", { tabindex: "-1" }, "Sign in"), why, form));
    input.focus();
  }
}

customElements.define("eb-sign-in", SignIn);
