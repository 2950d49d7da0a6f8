/**
 * The user's token: kept for this tab alone, in sessionStorage, and sent in a header only.
 *
 * What it claims is read for the page's own text; the edge alone decides what it allows
 * and when it has expired, since this machine's clock may be wrong.
 */

const KEY = "everbus.token";
const WRITERS = ["user", "operator", "admin"];
const FRAGMENT = /^#token=([A-Za-z0-9_.~+/=-]+)$/;

class Access extends EventTarget {
  #token = "";
  claims = {};

  constructor() {
    super();
    this.#take(remembered());
  }

  get token() {
    return this.#token;
  }

  /** Whether the role may write at all; the edge decides each case. */
  get mayWrite() {
    return WRITERS.includes(this.claims.role);
  }

  /** Take the token out of the address, where `everbus dev` puts it; true if there was one. */
  takeFromFragment() {
    const found = FRAGMENT.exec(location.hash);
    if (!found) return false;
    history.replaceState(null, "", `${location.pathname}#/sessions`);
    this.signIn(found[1]);
    return true;
  }

  signIn(token) {
    this.#take(token.trim());
    remember(this.#token);
    this.dispatchEvent(new Event("changed"));
  }

  /** Forget the token; *reason* is the edge's refusal, or nothing. */
  signOut(reason = null) {
    if (!this.#token) return;
    this.#take("");
    remember("");
    this.dispatchEvent(new CustomEvent("changed", { detail: reason }));
  }

  #take(token) {
    this.#token = token;
    this.claims = claimsOf(token);
  }
}

function claimsOf(token) {
  try {
    const part = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const raw = Uint8Array.from(atob(part), (one) => one.charCodeAt(0));
    const claims = JSON.parse(new TextDecoder().decode(raw));
    return claims && typeof claims === "object" ? claims : {};
  } catch {
    return {};
  }
}

function remembered() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // storage is off: the token lives as long as this page
  }
}

function remember(token) {
  try {
    if (token) sessionStorage.setItem(KEY, token);
    else sessionStorage.removeItem(KEY);
  } catch {
    // As above.
  }
}

export const access = new Access();
