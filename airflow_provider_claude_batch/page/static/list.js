// The list of submissions, newest first; retry rounds are folded under their first.
import { Poll, Question } from "./api.js";
import { Charts } from "./charts.js";
import { announce, draw, h, ready } from "./dom.js";
import { filters, narrow, narrowed, reset } from "./filters.js";
import { count, percent, plural, words } from "./format.js";
import { badge, cell, costs, dagLink, flag, inFlight, notes, outcomesBar, requestsNote, runLink, shards, STATES, table, taskLink, taskName, time, times, trouble } from "./parts.js";
import { go, place, scope, to } from "./place.js";

const LIMIT = 25;

export class List {
  constructor(root) {
    this.root = root;
    this.open = new Set();
    this.question = new Question();
    this.charts = new Charts(root, () => this.draw());
    this.poll = new Poll(() => this.load(true), () => this.answer?.submissions.some(inFlight));
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
    draw(this.root,
      h("h1", { class: scope.dag_id ? "unseen" : null }, "Claude Batches"),
      banner(this.answer),
      !nothing && [filters(this.answer), this.charts.tree()],
      this.problem && trouble(this.problem, () => this.show(this.place)),
      notes(this.answer?.live.problems),
      h("section", { class: "list", "aria-label": "Submissions", "aria-busy": String(Boolean(this.busy)), "data-key": "list" }, this.body()));
  }

  body() {
    if (!this.answer) return this.problem ? null : h("div", { class: "skeleton", "data-key": "wait" }, h("p", { class: "unseen" }, "Loading"), Array.from({ length: 6 }, () => h("div")));
    if (!this.answer.submissions.length) return empty();
    const rows = this.answer.submissions.flatMap((submission) => this.rows(submission));
    return [table({ class: "cards", caption: "Submissions, newest first", "data-key": "table" }, columns(), rows), paging(this.answer)];
  }

  rows(submission) {
    const open = this.open.has(submission.id);
    const fold = () => {
      this.open[open ? "delete" : "add"](submission.id);
      this.draw();
    };
    return [row(submission, open, fold), ...(open ? submission.rounds.map((round) => roundRow(submission, round)) : [])];
  }

  close() {
    this.closed = true;
    this.question.drop();
    this.poll.stop();
    this.charts.close();
    clearInterval(this.clock);
  }
}

function columns() {
  const whose = [!scope.dag_id && "Dag", !scope.run_id && "run", "task"].filter(Boolean).join(", ");
  return [
    { name: "Submitted", class: "c-submitted", "aria-sort": "descending" }, { name: whose[0].toUpperCase() + whose.slice(1), class: "c-whose" },
    { name: "State", class: "c-state" }, { name: "Shards", class: "c-shards", title: "Ended, of how many" }, { name: "Time", class: "c-time" }, { name: "Requests" },
    { name: "Cost", class: "c-cost right" }, { name: "Cache hits", class: "c-cache right" },
  ];
}

function row(submission, open, fold) {
  const { id, dag_id, run_id, submit_task, map_index, rounds, submitted_at } = submission;
  const retried = rounds.length > 1;
  const here = to({ ...place(), submission: id, dag_id, run_id });
  return h("tr", { role: "row", "data-key": id, "data-submission": id, "data-state": submission.state, class: open ? "open" : null },
    cell("Submitted", "submitted", null,
      h("a", { ...here, "data-action": "open" }, time(submitted_at), h("span", { class: "unseen" }, `, submission ${id}`)),
      retried && h("button", { type: "button", class: "fold", "aria-expanded": String(open), onclick: fold, "data-action": "fold" }, `${rounds.length} rounds`)),
    cell("Task", "task-cell", { class: "whose" },
      !scope.dag_id && h("div", { class: "dag" }, dagLink(submission)),
      !scope.run_id && h("div", null, runLink(submission)),
      h("div", null, taskLink(submission, submit_task, map_index))),
    cell("State", "state", null, badge(submission.state), flag(submission)),
    ...figures(submission));
}

function roundRow(submission, round) {
  return h("tr", { role: "row", class: "round", "data-key": `${submission.id}/${round.attempt}`, "data-round": round.attempt, "data-state": round.state },
    cell("Round", "attempt", null, `Round ${round.attempt}`),
    cell("Task", "task-cell", { class: "whose" }, h("div", { title: taskName(round.submit_task, round.map_index) }, taskLink(submission, round.submit_task, round.map_index))),
    cell("State", "state", null, badge(round.state), flag(round)),
    ...figures(round));
}

function figures(part) {
  const note = requestsNote(part);
  return [
    cell("Shards ended", "shards", { "data-value": `${part.shards.ended}/${part.shards.total}` }, shards(part)),
    cell("Time", "time", null, times(part)),
    cell("Requests", "outcomes", { "data-value": part.requests }, h("div", null, `${plural(part.requests, "request")}`, note && h("small", null, ` · ${note}`)), outcomesBar(part.outcomes)),
    cell("Cost", "cost", { class: "right", "data-value": part.cost_usd }, costs(part)),
    cell("Cache hits", "cache", { class: "right", "data-value": part.cache_hit_rate }, percent(part.cache_hit_rate)),
  ];
}

function banner(answer) {
  if (!answer?.never_loaded || place().state === "ended") return null;
  const many = answer.never_loaded !== 1;
  return h("div", { class: "banner", "data-key": "banner", "data-banner": "never_loaded" },
    h("p", null, h("strong", null, `${plural(answer.never_loaded, "submission")} ended and ${many ? "were" : "was"} never loaded.`), " Results are paid for, and the API deletes them after 29 days."),
    h("button", { type: "button", class: "button", onclick: () => narrow({ state: "ended" }) }, many ? "Show them" : "Show it"));
}

function empty() {
  if (narrowed()) return h("div", { class: "empty", "data-empty": "filtered" }, h("p", null, "Nothing matches these filters."), h("button", { type: "button", class: "button", onclick: reset }, "Reset filters"));
  const where = scope.run_id ? "in this run" : scope.dag_id ? "in this Dag" : "yet";
  return h("div", { class: "empty", "data-empty": "new" }, h("p", null, h("strong", null, `No batches ${where}.`)),
    h("p", null, "Put ", h("code", null, "claude_batch(\"labels\", requests=…, table=…)"), " into a Dag and run it: its batches appear here as soon as they are submitted."));
}

function paging({ total, limit, offset, capped }) {
  const last = Math.max(0, Math.floor((total - 1) / limit) * limit);
  const step = (name, label, target, possible) =>
    h("button", { type: "button", class: "button", "data-page": name, "aria-label": `${words(name)} page`, disabled: !possible, onclick: () => go({ ...place(), offset: target || null }) }, label);
  return h("nav", { class: "paging", "aria-label": "Pages", "data-key": "paging" },
    h("p", { "data-total": "submissions", "data-value": total }, `${count(offset + 1)}–${count(Math.min(offset + limit, total))} of ${count(total)}`, capped && h("small", null, " · older ones are not listed")),
    total > limit && h("div", null,
      step("first", "«", 0, offset > 0), step("previous", "‹ Previous", Math.max(0, offset - limit), offset > 0),
      step("next", "Next ›", offset + limit, offset + limit < total), step("last", "»", last, offset < last)));
}
