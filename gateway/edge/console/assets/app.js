/**
 * The frame: who is signed in, which page the address names, and a way back from an
 * expired token.
 */

import { access } from "./access.js";
import { el, fill } from "./dom.js";
import "./health.js";
import "./overview.js";
import "./problem.js";
import "./request.js";
import "./session.js";
import "./sessions.js";
import "./sign_in.js";

// First part of the address → title and element; the ones with `menu` are in the menu.
const PAGES = {
  sessions: { title: "Sessions", tag: "eb-sessions", menu: true },
  overview: { title: "Overview", tag: "eb-overview", menu: true },
  health: { title: "Health", tag: "eb-health", menu: true },
};

class App extends HTMLElement {
  #refusal = null;

  connectedCallback() {
    access.takeFromFragment();
    access.addEventListener("changed", (event) => {
      this.#refusal = event.detail ?? null;
      this.#draw();
    });
    addEventListener("hashchange", () => {
      if (!access.takeFromFragment()) this.#draw();
    });
    this.#draw();
  }

  #draw() {
    const [name, ...rest] = placeOf(location.hash).parts;
    const page = PAGES[name] ?? PAGES.sessions;
    document.title = `${access.token ? page.title : "Sign in"} · everbus console`;
    const content = access.token ? elementOf(page, rest) : signIn(this.#refusal);
    const main = el("main", { id: "main", tabindex: "-1" }, content);
    fill(this, skipLink(main), bar(page), main);
    main.querySelector("h1")?.focus();
  }
}

/** The parts and parameters of an address like `#/sessions/ID?tag=x`. */
export function placeOf(hash) {
  const [path, search = ""] = hash.replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").map(decoded), query: new URLSearchParams(search) };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function elementOf(page, [session, kind, command]) {
  if (page.tag !== "eb-sessions" || !session) {
    const list = document.createElement(page.tag);
    list.query = placeOf(location.hash).query;
    return list;
  }
  const shown = document.createElement(kind === "requests" ? "eb-request" : "eb-session");
  shown.session = session;
  shown.command = command;
  shown.query = placeOf(location.hash).query;
  return shown;
}

function skipLink(main) {
  // By script: the address holds the page, so a fragment would lose it.
  const skip = (event) => {
    event.preventDefault();
    main.focus();
  };
  return el("a", { class: "skip", href: "#main", click: skip }, "Skip to the content");
}

function bar(current) {
  const links = Object.entries(PAGES).filter(([, page]) => page.menu).map(([name, page]) =>
    el("a", { href: `#/${name}`, "aria-current": page === current ? "page" : null }, page.title));
  const menu = el("nav", { "aria-label": "Pages" }, links, el("a", { href: "docs" }, "API"));
  return el("header", { class: "bar" }, el("strong", {}, "everbus"), access.token ? menu : null, access.token ? who() : null);
}

function who() {
  const { sub = "somebody", role = "no role", tenant } = access.claims;
  const name = tenant ? `${sub} (${role} of ${tenant})` : `${sub} (${role})`;
  return el("div", { class: "who" }, el("span", {}, name),
    el("button", { type: "button", click: () => access.signOut() }, "Sign out"));
}

function signIn(refusal) {
  const form = document.createElement("eb-sign-in");
  form.refusal = refusal;
  return form;
}

customElements.define("eb-app", App);
