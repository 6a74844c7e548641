// A round's rows as they stand in the warehouse, which is asked only when somebody wants to see them.
import { Question } from "./api.js";
import { h } from "./dom.js";
import { count, money, words } from "./format.js";
import { cell, table, trouble } from "./parts.js";

const LONG = 240;

export class Rows {
  constructor({ id, dag_id, run_id }, attempt, redraw) {
    this.path = `submissions/${encodeURIComponent(id)}/rows`;
    this.query = { dag_id, run_id, attempt };
    this.redraw = redraw;
    this.question = new Question();
    this.open = new Set();
  }

  async show(failed) {
    [this.failed, this.busy, this.problem] = [failed, true, null];
    this.redraw();
    try {
      this.answer = await this.question.ask(this.path, { ...this.query, failed });
    } catch (problem) {
      if (problem.name === "AbortError") return;
      this.problem = problem;
    }
    this.busy = false;
    this.redraw();
  }

  tree() {
    if (this.failed === undefined)
      return h(
        "button",
        { type: "button", class: "button", "data-action": "rows", onclick: () => this.show(true) },
        "Show rows",
      );
    const tab = (failed, label) =>
      h(
        "button",
        {
          type: "button",
          "aria-pressed": String(this.failed === failed),
          "data-rows": failed ? "failed" : "all",
          onclick: () => this.show(failed),
        },
        label,
      );
    return h(
      "div",
      { class: "rows", "aria-busy": String(this.busy), "data-loaded": this.busy ? null : "1" },
      h("div", { class: "segments", role: "group", "aria-label": "Rows" }, tab(true, "Failed"), tab(false, "All")),
      this.problem ? trouble(this.problem, () => this.show(this.failed)) : this.answer && this.body(),
    );
  }

  body() {
    const { rows, problem } = this.answer;
    if (problem) return h("p", { class: "note" }, problem);
    if (!rows.length)
      return h(
        "p",
        { class: "nothing" },
        this.busy
          ? "Asking the warehouse…"
          : this.failed
            ? "No request failed."
            : "The table has no rows of this round.",
      );
    const columns = [
      { name: "custom_id" },
      { name: "Status" },
      { name: "Answer or error" },
      { name: "Model" },
      { name: "Tokens in / out", right: true },
      { name: "Cost", right: true },
    ];
    return table(
      { class: "cards", caption: "Rows in the warehouse" },
      columns,
      rows.map((row) => this.row(row)),
    );
  }

  row(row) {
    const error = [row.error_type, row.error_message].filter(Boolean).join(": ");
    return h(
      "tr",
      { role: "row", "data-custom-id": row.custom_id },
      cell(
        "custom_id",
        "custom_id",
        null,
        h("span", { class: "ids" }, h("code", { title: row.custom_id }, row.custom_id)),
      ),
      cell(
        "Status",
        "status",
        null,
        words(row.status ?? "–"),
        row.problem && h("small", { class: "block" }, words(row.problem)),
      ),
      cell(
        "Answer or error",
        "text",
        { class: "grow" },
        error && h("p", { class: "error" }, error),
        row.text ? this.text(row) : !error && "–",
      ),
      cell("Model", "model", null, h("code", null, row.model ?? "–")),
      cell("Tokens in / out", "tokens", { class: "right" }, `${count(row.input_tokens)} / ${count(row.output_tokens)}`),
      cell("Cost", "cost", { class: "right", "data-value": row.cost_usd }, money(row.cost_usd)),
    );
  }

  text({ custom_id, text }) {
    const open = this.open.has(custom_id);
    const flip = () => {
      this.open[open ? "delete" : "add"](custom_id);
      this.redraw();
    };
    const long = text.length > LONG || text.split("\n").length > 4;
    return [
      h("pre", { class: long && !open ? "clamped" : null }, long && !open ? text.slice(0, 600) : text),
      long &&
        h(
          "button",
          { type: "button", class: "fold", "aria-expanded": String(open), onclick: flip },
          open ? "Show less" : `Show all ${count(text.length)} characters`,
        ),
    ];
  }
}
