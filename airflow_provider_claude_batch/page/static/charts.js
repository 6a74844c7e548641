// The section of charts above the list: totals, spend, outcomes, processing time.
import { Question } from "./api.js";
import { h } from "./dom.js";
import { figure } from "./figure.js";
import { atLeast, count, day, money, percent } from "./format.js";
import { trouble } from "./parts.js";
import { durations, outcomes, spend } from "./plots.js";

const REMEMBERED = "claude-batches.charts";
// The same in page.css: three charts side by side from WIDE on, GAP between them, and each one's padding and border.
const [WIDE, GAP, FRAME] = [860, 12, 26];

// On a phone the list comes first.
const usual = () => (window.innerWidth < 600 ? "closed" : "open");

function remembered() {
  try {
    return (localStorage.getItem(REMEMBERED) ?? usual()) === "open";
  } catch {
    return usual() === "open";
  }
}

function remember(open) {
  try {
    localStorage.setItem(REMEMBERED, open ? "open" : "closed");
  } catch {
    // Storage may be forbidden; the choice then lasts as long as the page.
  }
}

const inside = (root) => root.clientWidth - 2 * parseFloat(getComputedStyle(root).paddingLeft);

export class Charts {
  constructor(root, redraw) {
    this.root = root;
    this.redraw = redraw;
    this.open = remembered();
    this.tables = new Set();
    this.pointed = new Map();
    this.question = new Question();
    this.width = inside(root);
    this.observer = new ResizeObserver(() => this.measure());
    this.observer.observe(root);
  }

  measure() {
    const width = inside(this.root);
    if (this.width === width) return;
    this.width = width;
    this.redraw();
  }

  async show(place) {
    this.place = place;
    if (!this.open) return;
    const { dag_id, run_id, state, model, since, until } = place;
    try {
      [this.answer, this.problem] = [
        await this.question.ask("charts", { dag_id, run_id, state, model, since, until }),
        null,
      ];
    } catch (problem) {
      if (problem.name === "AbortError") return;
      this.problem = problem;
    }
    this.redraw();
  }

  toggle() {
    this.open = !this.open;
    remember(this.open);
    this.redraw();
    if (this.open) this.show(this.place);
  }

  flip(name) {
    this.tables[this.tables.has(name) ? "delete" : "add"](name);
    this.redraw();
  }

  tree() {
    const span = this.answer ? `${day(this.answer.since)} – ${day(this.answer.until)}` : "";
    return h(
      "section",
      { class: "charts", "aria-label": "Charts", "data-key": "charts" },
      h(
        "div",
        { class: "charts-head" },
        h(
          "button",
          {
            type: "button",
            class: "fold",
            "aria-expanded": String(this.open),
            "aria-controls": "charts",
            "data-action": "charts",
            onclick: () => this.toggle(),
          },
          "Overview",
        ),
        this.open && h("span", { class: "muted" }, span),
      ),
      h("div", { id: "charts", hidden: !this.open }, this.open && this.body()),
    );
  }

  body() {
    if (this.problem) return trouble(this.problem, () => this.show(this.place));
    if (!this.answer) return h("div", { class: "skeleton charts-wait" }, h("div"));
    const plots = [spend(this.answer), outcomes(this.answer), durations(this.answer)];
    return [
      totals(this.answer.totals),
      h(
        "div",
        { class: "figures" },
        plots.map((plot) => this.figure(plot)),
      ),
    ];
  }

  figure(plot) {
    const width = window.innerWidth >= WIDE ? (this.width - 2 * GAP) / 3 : this.width;
    const view = { asTable: this.tables.has(plot.name), flip: () => this.flip(plot.name), pointed: this.pointed };
    return figure(plot, Math.floor(width) - FRAME, view);
  }

  close() {
    this.observer.disconnect();
    this.question.drop();
  }
}

function totals({ cost_usd, live_cost_usd, saved_usd, unpriced, requests, batches }) {
  const share = live_cost_usd ? `${percent(saved_usd / live_cost_usd)} of ${money(live_cost_usd)} live` : null;
  const one = (name, label, value, shown, note) =>
    h(
      "div",
      { "data-total": name, "data-value": value, class: name },
      h("dt", null, label),
      h("dd", null, shown, note && h("small", null, note)),
    );
  return h(
    "dl",
    { class: "totals" },
    one("cost_usd", "Spent", cost_usd, atLeast(cost_usd, unpriced)),
    one("saved_usd", "Saved", saved_usd, money(saved_usd), share),
    one("requests", "Requests", requests, count(requests)),
    one("batches", "Batches", batches, count(batches)),
  );
}
