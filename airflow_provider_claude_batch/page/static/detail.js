// One submission's own page: each round with its shards, errors, tokens and tables.
import { Poll, Question } from "./api.js";
import { announce, draw, h, ready } from "./dom.js";
import { atLeast, count, percent, plural } from "./format.js";
import {
  badge, copyable, costs, dagLink, flag, inFlight, leftOut, notes, outcomesBar, requestsNote, runLink, shards, STATES,
  time, times, trouble, without,
} from "./parts.js";
import { list, to } from "./place.js";
import { answers, batches, errors, invalid, models, tables, tasks, timeline } from "./round.js";
import { Rows } from "./rows.js";

export class Detail {
  constructor(root) {
    this.root = root;
    this.question = new Question();
    this.rows = new Map();
    this.poll = new Poll(
      () => this.load(true),
      () => !this.problem?.isFinal && this.answer && inFlight(this.answer.submission),
    );
    this.clock = setInterval(() => this.draw(), 30000);
  }

  async show(here) {
    if (this.place?.submission !== here.submission) [this.answer, this.problem, this.rows] = [null, null, new Map()];
    this.place = here;
    await this.load(false);
    if (this.place !== here || this.closed) return;
    ready(true);
    if (!this.problem && inFlight(this.answer.submission)) this.load(true);
  }

  async load(live) {
    if (live && this.question.pending) return;
    this.draw();
    const { submission, dag_id, run_id } = this.place;
    try {
      const answer = await this.question.ask(`submissions/${encodeURIComponent(submission)}`, { dag_id, run_id, live });
      this.tell(answer.submission.state);
      [this.answer, this.problem] = [answer, null];
    } catch (problem) {
      if (problem.name === "AbortError") return;
      this.problem = problem;
    }
    this.draw();
  }

  tell(state) {
    if (this.answer && this.answer.submission.state !== state) announce(`This submission: ${STATES[state]}`);
  }

  draw() {
    if (this.closed) return;
    draw(
      this.root,
      h(
        "nav",
        { "aria-label": "Back" },
        h("a", { class: "back", ...to(list()), "data-action": "back" }, "‹ All submissions"),
      ),
      this.problem && trouble(this.problem, () => this.show(this.place)),
      this.answer
        ? this.body(this.answer)
        : !this.problem &&
            h(
              "div",
              { class: "skeleton", "data-key": "wait" },
              h("p", { class: "unseen" }, "Loading"),
              h("div"),
              h("div"),
              h("div"),
            ),
    );
  }

  body({ submission, console_url, left_out, problems, live }) {
    return h(
      "article",
      { "data-submission": submission.id, "data-state": submission.state, "data-key": submission.id },
      heading(submission, console_url),
      notes([...problems, ...live.problems]),
      leftOut(left_out),
      facts(submission),
      submission.rounds.map((round) => this.round(submission, round)),
    );
  }

  round(submission, round) {
    const { attempt } = round;
    if (!this.rows.has(attempt)) this.rows.set(attempt, new Rows(submission, attempt, () => this.draw()));
    return h(
      "section",
      {
        class: "round-part",
        "data-round": attempt,
        "data-key": `round-${attempt}`,
        "aria-labelledby": `round-${attempt}`,
      },
      h(
        "header",
        null,
        h("h2", { id: `round-${attempt}` }, `Round ${attempt}`),
        badge(round.state),
        flag(round),
        h(
          "span",
          { class: "muted" },
          [plural(round.requests, "request"), requestsNote(round)].filter(Boolean).join(" · "),
        ),
      ),
      timeline(round),
      tasks(submission, round),
      batches(round),
      answers(round),
      errors(round),
      models(round),
      invalid(round),
      tables(round, this.rows.get(attempt)),
    );
  }

  close() {
    this.closed = true;
    this.question.drop();
    this.poll.stop();
    clearInterval(this.clock);
  }
}

function heading(submission, console_url) {
  return h(
    "header",
    { class: "heading" },
    h(
      "div",
      { class: "title" },
      h("h1", null, `${submission.dag_id} · ${submission.submit_task.replace(/\.submit$/, "")}`),
      badge(submission.state),
      flag(submission),
    ),
    h(
      "dl",
      { class: "facts inline" },
      fact("Dag", dagLink(submission)),
      fact("Run", runLink(submission)),
      fact("Submitted", time(submission.submitted_at)),
      fact("Id", copyable(submission.id)),
      fact("Connection", h("code", null, submission.conn_id ?? "–")),
      console_url &&
        h(
          "div",
          null,
          h("dt", { class: "unseen" }, "Elsewhere"),
          h(
            "dd",
            null,
            h(
              "a",
              { class: "external", href: console_url, target: "_blank", rel: "noopener noreferrer" },
              "Claude Console ↗",
            ),
          ),
        ),
    ),
  );
}

const fact = (label, ...values) => h("div", null, h("dt", null, label), h("dd", null, ...values));

const plus = (field, usd, unpriced, what) =>
  (usd > 0 || unpriced > 0) &&
  h(
    "small",
    { "data-field": field, "data-value": usd },
    `plus ${usd === null ? "an unknown amount" : atLeast(usd, unpriced)} for ${what}`,
  );

const preflight = ({ preflight_usd: usd, preflight_unpriced: unpriced }) =>
  plus("preflight", usd, unpriced, "live preflight");

const abandoned = ({ abandoned: { batches, usd, unpriced } }) =>
  plus("abandoned", usd, unpriced, batches === 1 ? "an abandoned batch" : `${count(batches)} abandoned batches`);

function facts(submission) {
  const figure = (name, label, value, ...shown) =>
    h("div", { "data-field": name, "data-value": value }, h("dt", null, label), h("dd", null, ...shown));
  const note = requestsNote(submission);
  return h(
    "section",
    { class: "summary", "aria-label": "Summary" },
    h(
      "dl",
      { class: "totals" },
      figure("requests", "Requests", submission.requests, count(submission.requests), note && h("small", null, note)),
      figure("cost", "Cost", submission.cost_usd, costs(submission), preflight(submission), abandoned(submission)),
      figure("cache", "Cache hits", submission.cache_hit_rate, percent(submission.cache_hit_rate)),
      figure("time", "Time", null, times(submission)),
      figure("shards", "Shards ended", `${submission.shards.ended}/${submission.shards.total}`, shards(submission)),
    ),
    h("div", { class: "wide", "data-field": "outcomes" }, outcomesBar(submission.outcomes, 12, without(submission))),
  );
}
