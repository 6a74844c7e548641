// One submission's own page: each round with its shards, errors, tokens and tables.
import { Poll, Question } from "./api.js";
import { announce, draw, h, ready } from "./dom.js";
import { between, count, duration, money, percent, plural, words } from "./format.js";
import { badge, cell, copyable, costs, dagLink, flag, inFlight, notes, outcomesBar, requestsNote, runLink, shards, STATES, table, taskLink, time, times, trouble } from "./parts.js";
import { list, to } from "./place.js";
import { Rows } from "./rows.js";

export class Detail {
  constructor(root) {
    this.root = root;
    this.question = new Question();
    this.rows = new Map();
    this.poll = new Poll(() => this.load(true), () => this.answer && inFlight(this.answer.submission));
    this.clock = setInterval(() => this.draw(), 30000);
  }

  async show(here) {
    if (this.place?.submission !== here.submission) [this.answer, this.rows] = [null, new Map()];
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
    draw(this.root,
      h("nav", { "aria-label": "Back" }, h("a", { class: "back", ...to(list()), "data-action": "back" }, "‹ All submissions")),
      this.problem && trouble(this.problem, () => this.show(this.place)),
      this.answer ? this.body(this.answer) : !this.problem && h("div", { class: "skeleton", "data-key": "wait" }, h("p", { class: "unseen" }, "Loading"), h("div"), h("div"), h("div")));
  }

  body({ submission, console_url, live }) {
    return h("article", { "data-submission": submission.id, "data-state": submission.state, "data-key": submission.id },
      heading(submission, console_url),
      notes(live.problems),
      facts(submission),
      submission.rounds.map((round) => this.round(submission, round)));
  }

  round(submission, round) {
    const { attempt } = round;
    if (!this.rows.has(attempt)) this.rows.set(attempt, new Rows(submission, attempt, () => this.draw()));
    return h("section", { class: "round-part", "data-round": attempt, "data-key": `round-${attempt}`, "aria-labelledby": `round-${attempt}` },
      h("header", null, h("h2", { id: `round-${attempt}` }, `Round ${attempt}`), badge(round.state), flag(round),
        h("span", { class: "muted" }, [plural(round.requests, "request"), requestsNote(round)].filter(Boolean).join(" · "))),
      timeline(round),
      tasks(submission, round),
      batches(round), errors(round), models(round), invalid(round),
      tables(round, this.rows.get(attempt)));
  }

  close() {
    this.closed = true;
    this.question.drop();
    this.poll.stop();
    clearInterval(this.clock);
  }
}

function heading(submission, console_url) {
  return h("header", { class: "heading" },
    h("div", { class: "title" }, h("h1", null, `${submission.dag_id} · ${submission.submit_task.replace(/\.submit$/, "")}`), badge(submission.state), flag(submission)),
    h("dl", { class: "facts inline" },
      fact("Dag", dagLink(submission)), fact("Run", runLink(submission)),
      fact("Submitted", time(submission.submitted_at)), fact("Id", copyable(submission.id)),
      fact("Connection", h("code", null, submission.conn_id ?? "–")),
      console_url && h("div", null, h("dt", { class: "unseen" }, "Elsewhere"), h("dd", null, h("a", { class: "external", href: console_url, target: "_blank", rel: "noopener noreferrer" }, "Claude Console ↗")))));
}

const fact = (label, ...values) => h("div", null, h("dt", null, label), h("dd", null, ...values));

function facts(submission) {
  const figure = (name, label, value, ...shown) => h("div", { "data-field": name, "data-value": value }, h("dt", null, label), h("dd", null, ...shown));
  const note = requestsNote(submission);
  return h("section", { class: "summary", "aria-label": "Summary" },
    h("dl", { class: "totals" },
      figure("requests", "Requests", submission.requests, count(submission.requests), note && h("small", null, note)),
      figure("cost", "Cost", submission.cost_usd, costs(submission)),
      figure("cache", "Cache hits", submission.cache_hit_rate, percent(submission.cache_hit_rate)),
      figure("time", "Time", null, times(submission)),
      figure("shards", "Shards ended", `${submission.shards.ended}/${submission.shards.total}`, shards(submission))),
    h("div", { class: "wide", "data-field": "outcomes" }, outcomesBar(submission.outcomes, 12)));
}

function timeline({ submitted_at, ended_at, noticed_at, loaded_at }) {
  const steps = [["submitted", submitted_at], ["ended", ended_at], ["noticed", noticed_at], ["loaded", loaded_at]];
  return h("ol", { class: "timeline", "aria-label": "Timeline" }, steps.map(([name, at], i) => {
    const span = i ? between(steps[i - 1][1], at) : null;
    return h("li", { class: at ? "done" : null, "data-step": name },
      h("span", { class: "span" }, span !== null && span >= 0 ? `+ ${duration(span)}` : ""),
      h("strong", null, name), at ? time(at) : h("span", { class: "muted" }, "not yet"));
  }));
}

function tasks(submission, { tasks: all }) {
  if (!all?.length) return null;
  return h("dl", { class: "facts inline tasks" }, all.map(({ step, task_id, map_index, at }) =>
    h("div", { "data-step": step }, h("dt", null, step), h("dd", null, taskLink(submission, task_id, map_index), h("small", { class: "block" }, "page and logs", at && [" · ", time(at)])))));
}

const part = (name, title, ...children) => h("section", { class: "part", "data-part": name, "data-key": name }, h("h3", null, title), ...children);

function batches({ batches: all }) {
  if (!all?.length) return null;
  const rows = all.map((batch) => h("tr", { role: "row", "data-key": batch.id, "data-batch": batch.id, "data-state": batch.state },
    cell("Batch", "batch", null, copyable(batch.id)),
    cell("State", "state", null, badge(batch.state)),
    cell("Requests", "requests", { class: "right", "data-value": batch.requests }, count(batch.requests), batch.bytes !== null && h("small", null, ` ${size(batch.bytes)}`)),
    cell("Counts", "counts", { class: "wide" }, batch.counts ? outcomesBar(batch.counts, 5) : h("span", { class: "muted" }, "not known yet")),
    cell("Duration", "duration", { class: "right", "data-value": between(batch.created_at, batch.ended_at) }, batch.ended_at ? duration(between(batch.created_at, batch.ended_at)) : "–"),
    cell("Created", "created", { class: "right" }, time(batch.created_at))));
  const columns = [{ name: "Batch" }, { name: "State" }, { name: "Requests", right: true }, { name: "Counts" }, { name: "Duration", right: true }, { name: "Created", right: true }];
  return part("batches", plural(all.length, "shard"), table({ class: "cards", caption: "Shards" }, columns, rows));
}

function size(bytes) {
  const [unit, value] = bytes >= 1e6 ? ["MB", bytes / 1e6] : bytes >= 1e3 ? ["kB", bytes / 1e3] : ["B", bytes];
  return `${value < 10 ? Math.round(value * 10) / 10 : Math.round(value)} ${unit}`;
}

const ids = (examples) => h("span", { class: "ids" }, examples.map((id) => h("code", { title: id }, id)));

function errors({ errors: all }) {
  if (!all?.length) return null;
  const rows = all.map(({ error, count: times, examples }) => h("tr", { role: "row" },
    cell("Requests", "count", { class: "right", "data-value": times }, count(times)),
    cell("Error", "error", { class: "grow" }, error),
    cell("For example", "examples", null, ids(examples))));
  return part("errors", "Commonest errors", table({ class: "cards", caption: "Commonest errors" }, [{ name: "Requests", right: true }, { name: "Error" }, { name: "For example" }], rows));
}

const TOKENS = [["input_tokens", "Input"], ["cache_read_tokens", "Cache read"], ["cache_write_5m_tokens", "Cache write 5 min"], ["cache_write_1h_tokens", "Cache write 1 h"], ["output_tokens", "Output"]];

function models({ by_model: all }) {
  if (!all?.length) return null;
  const right = (label, name, value, shown) => cell(label, name, { class: "right", "data-value": value }, shown);
  const rows = all.map((row) => h("tr", { role: "row", "data-model": row.model },
    cell("Model", "model", null, h("code", null, row.model)),
    right("Requests", "rows", row.rows, count(row.rows)),
    TOKENS.map(([name, label]) => right(label, name, row[name], count(row[name]))),
    right("Cost", "cost", row.cost_usd, money(row.cost_usd)),
    right("Live", "live_cost", row.live_cost_usd, money(row.live_cost_usd))));
  const columns = [{ name: "Model" }, ...["Requests", ...TOKENS.map(([, label]) => label), "Cost", "Live"].map((name) => ({ name, right: true }))];
  return part("models", "Models and tokens", table({ class: "cards", caption: "Models and tokens" }, columns, rows));
}

function invalid({ invalid: all }) {
  const reasons = Object.entries(all ?? {});
  if (!reasons.length) return null;
  return part("invalid", "Skipped before they were sent", h("ul", { class: "reasons" },
    reasons.map(([why, examples]) => h("li", null, h("div", null, why, h("small", null, ` · ${plural(examples.length, "id")}`)), ids(examples)))));
}

function tables({ tables: all }, rows) {
  if (!all?.length) return null;
  return part("tables", all.length === 1 ? "Table" : "Tables",
    h("ul", { class: "tables" }, all.map(({ table: name, warehouse_conn_id }) => h("li", null, h("code", null, name), h("small", null, " through the connection "), h("code", null, warehouse_conn_id)))),
    rows.tree());
}
