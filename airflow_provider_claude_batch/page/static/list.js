// The list of submissions, newest first; retry rounds are folded under their first.
import { Poll, Question } from "./api.js";
import { Charts } from "./charts.js";
import { announce, draw, h, ready } from "./dom.js";
import { filters, narrow, narrowed, reset } from "./filters.js";
import { count, plural, words } from "./format.js";
import { inFlight, leftOut, notes, STATES, table, trouble } from "./parts.js";
import { go, place, scope } from "./place.js";
import { columns, row, roundRow } from "./row.js";

const LIMIT = 25;

export class List {
  constructor(root) {
    this.root = root;
    this.open = new Set();
    this.question = new Question();
    this.charts = new Charts(root, () => this.draw());
    this.poll = new Poll(
      () => this.load(true),
      () => !this.problem?.isFinal && this.answer?.submissions.some(inFlight),
    );
    this.clock = setInterval(() => this.draw(), 30000);
  }

  async show(here) {
    this.place = here;
    await Promise.all([this.load(false), this.charts.show(here)]);
    if (this.place !== here || this.closed) return;
    ready(true);
    if (!this.problem && this.answer.submissions.some(inFlight)) this.load(true);
  }

  async load(live) {
    if (live && this.question.pending) return;
    this.busy = !live;
    this.draw();
    const asked = { ...this.place, limit: LIMIT, offset: this.place.offset ?? 0, live };
    try {
      const answer = await this.question.ask("submissions", asked);
      if (answer.offset > lastPage(answer)) return go({ ...this.place, offset: lastPage(answer) || null }, true);
      this.tell(this.answer, answer);
      [this.answer, this.problem] = [answer, null];
    } catch (problem) {
      if (problem.name === "AbortError") return;
      this.problem = problem;
    }
    this.busy = false;
    this.draw();
  }

  /** Say only what changed its state while it was on the screen. */
  tell(before, after) {
    const known = new Map((before?.submissions ?? []).map(({ id, state }) => [id, state]));
    const moved = after.submissions.filter(({ id, state }) => known.has(id) && known.get(id) !== state);
    if (!moved.length) return;
    announce(moved.map(({ dag_id, submit_task, state }) => `${submit_task} of ${dag_id}: ${STATES[state]}`).join(". "));
    this.charts.show(this.place);
  }

  draw() {
    if (this.closed) return;
    const nothing = this.answer ? !this.answer.total && !narrowed() : this.problem;
    draw(
      this.root,
      h("h1", { class: scope.dag_id ? "unseen" : null }, "Claude Batches"),
      banner(this.answer),
      (!nothing || this.problem?.status === 422) && filters(this.answer),
      !nothing && this.charts.tree(),
      this.problem && trouble(this.problem, () => this.show(this.place)),
      notes(this.answer?.live.problems),
      leftOut(this.answer?.left_out),
      h(
        "section",
        { class: "list", "aria-label": "Submissions", "aria-busy": String(Boolean(this.busy)), "data-key": "list" },
        this.body(),
      ),
    );
  }

  body() {
    if (!this.answer)
      return this.problem
        ? null
        : h(
            "div",
            { class: "skeleton", "data-key": "wait" },
            h("p", { class: "unseen" }, "Loading"),
            Array.from({ length: 6 }, () => h("div")),
          );
    if (!this.answer.submissions.length) return empty();
    const rows = this.answer.submissions.flatMap((submission) => this.rows(submission));
    return [
      table({ class: "cards", caption: "Submissions, newest first", "data-key": "table" }, columns(), rows),
      paging(this.answer),
    ];
  }

  rows(submission) {
    const open = this.open.has(submission.id);
    const fold = () => {
      this.open[open ? "delete" : "add"](submission.id);
      this.draw();
    };
    return [
      row(submission, open, fold),
      ...(open ? submission.rounds.map((round) => roundRow(submission, round)) : []),
    ];
  }

  close() {
    this.closed = true;
    this.question.drop();
    this.poll.stop();
    this.charts.close();
    clearInterval(this.clock);
  }
}

function banner(answer) {
  if (!answer?.never_loaded || place().state === "ended") return null;
  const many = answer.never_loaded !== 1;
  return h(
    "div",
    { class: "banner", "data-key": "banner", "data-banner": "never_loaded" },
    h(
      "p",
      null,
      h(
        "strong",
        null,
        `${plural(answer.never_loaded, "submission")} ended and ${many ? "were" : "was"} never loaded.`,
      ),
      " Results are paid for, and the API deletes them after 29 days.",
    ),
    h(
      "button",
      { type: "button", class: "button", onclick: () => narrow({ state: "ended" }) },
      many ? "Show them" : "Show it",
    ),
  );
}

function empty() {
  if (narrowed())
    return h(
      "div",
      { class: "empty", "data-empty": "filtered" },
      h("p", null, "Nothing matches these filters."),
      h("button", { type: "button", class: "button", onclick: reset }, "Reset filters"),
    );
  const where = scope.run_id ? "in this run" : scope.dag_id ? "in this Dag" : "yet";
  return h(
    "div",
    { class: "empty", "data-empty": "new" },
    h("p", null, h("strong", null, `No batches ${where}.`)),
    h(
      "p",
      null,
      "Put ",
      h("code", null, 'claude_batch("labels", requests=…, table=…)'),
      " into a Dag and run it: its batches appear here as soon as they are submitted.",
    ),
  );
}

const lastPage = ({ total, limit }) => Math.max(0, Math.floor((total - 1) / limit) * limit);

function paging({ total, limit, offset, capped }) {
  const last = lastPage({ total, limit });
  const step = (name, label, target, possible) =>
    h(
      "button",
      {
        type: "button",
        class: "button",
        "data-page": name,
        "aria-label": `${words(name)} page`,
        disabled: !possible,
        onclick: () => go({ ...place(), offset: target || null }),
      },
      label,
    );
  return h(
    "nav",
    { class: "paging", "aria-label": "Pages", "data-key": "paging" },
    h(
      "p",
      { "data-total": "submissions", "data-value": total },
      `${count(offset + 1)}–${count(Math.min(offset + limit, total))} of ${count(total)}`,
      capped && h("small", null, " · not all are listed"),
    ),
    total > limit &&
      h(
        "div",
        null,
        step("first", "«", 0, offset > 0),
        step("previous", "‹ Previous", Math.max(0, offset - limit), offset > 0),
        step("next", "Next ›", offset + limit, offset + limit < total),
        step("last", "»", last, offset < last),
      ),
  );
}
