/**
 * What this deployment holds, and what this edge does now.
 *
 * Counts and tiers come from `GET /stats`, which operators and admins may read; rates from
 * this edge's own metrics, looked at while the page is seen.
 */

import { call, pause, probe } from "./api.js";
import { barChart, heatMap, lineChart } from "./chart.js";
import { bytes, el, facts, fill, number } from "./dom.js";
import { look, step } from "./metrics.js";
import { heading, Page, sourceNotice } from "./page.js";

const EVERY_MS = 2_000;
const MOST_STEPS = 60;
const TIERS = ["hot", "warm", "cold"];

class Overview extends Page {
  async open() {
    const stats = el("section", { class: "card stack" }, el("h2", {}, "Sessions and tiers"));
    const now = el("section", { class: "card stack" }, el("h2", {}, "This edge now"), el("p", { class: "quiet" }, "Looking…"));
    fill(this, heading("Overview"), el("div", { class: "tiles" }, stats, now));
    await Promise.all([this.attempt(() => this.#stats(stats), stats), this.attempt(() => this.#watch(now), now)]);
  }

  async #stats(place) {
    const answer = await call("stats", { signal: this.signal });
    const { sessions, states, tiers } = answer.value;
    const counts = Object.entries(states).map(([state, count]) => [state, number(count)]);
    const rows = TIERS.filter((name) => tiers[name]).map((name) => ({ name, value: tiers[name].bytes,
      text: `${bytes(tiers[name].bytes)}, ${number(tiers[name].sessions)} sessions` }));
    const costs = TIERS.filter((name) => tiers[name]).map((name) => [`${name}, a month`, tiers[name].cost.toFixed(2)]);
    fill(place, el("h2", {}, "Sessions and tiers"), sourceNotice(answer), facts([["sessions", number(sessions)], ...counts]),
      barChart("Bytes of each tier", rows), el("div", {}, el("h2", {}, "Cost"), facts(costs),
        el("p", { class: "small quiet" }, "In the currency of the prices in the settings.")));
  }

  async #watch(place) {
    const steps = [];
    let before = null;
    while (!this.signal.aborted) {
      // A hidden page asks nothing.
      if (!document.hidden) {
        const { status, text } = await probe("metrics", { signal: this.signal });
        if (status !== 200) return this.#elsewhere(place);
        const now = look(text, Date.now());
        const found = before && step(before, now);
        if (found) steps.push(found);
        if (steps.length > MOST_STEPS) steps.shift();
        before = now;
        this.#draw(place, now, steps);
      }
      await pause(EVERY_MS, this.signal);
    }
    return undefined;
  }

  #elsewhere(place) {
    fill(place, el("h2", {}, "This edge now"), el("p", {}, "This edge has its metrics on a port of its own (EVERBUS_HEALTH_PORT): let Prometheus read them there."));
  }

  #draw(place, now, steps) {
    const charts = steps.length ? [lineChart("Requests a second: ", ["requests", "refused", "failed"], steps),
      heatMap("How long requests took", steps)] : [el("p", { class: "quiet" }, "Rates show after the second look.")];
    fill(place, el("h2", {}, "This edge now"), facts([["live streams", number(now.streams)], ["in flight", number(now.inFlight)],
      ["memory", bytes(now.memory)], ["takes writes", now.readOnly ? "no: the bus is away" : "yes"]]), charts,
    el("p", { class: "small quiet" }, "Without probes and this page's own files. For all edges and managers: Prometheus, or ", el("code", {}, "everbus top"), "."));
  }
}

customElements.define("eb-overview", Overview);
