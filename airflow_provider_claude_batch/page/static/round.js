// The parts of one round on a submission's own page: its moments, tasks, shards, errors, tokens and tables.
import { h } from "./dom.js";
import { between, count, duration, money, plural } from "./format.js";
import { badge, cell, copyable, outcomesBar, table, taskLink, time } from "./parts.js";

export function timeline({ submitted_at, ended_at, noticed_at, loaded_at }) {
  const steps = [
    ["submitted", submitted_at],
    ["ended", ended_at],
    ["noticed", noticed_at],
    ["loaded", loaded_at],
  ];
  return h(
    "ol",
    { class: "timeline", "aria-label": "Timeline" },
    steps.map(([name, at], i) => {
      const span = i ? between(steps[i - 1][1], at) : null;
      return h(
        "li",
        { class: at ? "done" : null, "data-step": name },
        h("span", { class: "span" }, span !== null && span >= 0 ? `+ ${duration(span)}` : ""),
        h("strong", null, name),
        at ? time(at) : h("span", { class: "muted" }, "not yet"),
      );
    }),
  );
}

export function tasks(submission, { tasks: all }) {
  if (!all?.length) return null;
  return h(
    "dl",
    { class: "facts inline tasks" },
    all.map(({ step, task_id, map_index, at }) =>
      h(
        "div",
        { "data-step": step },
        h("dt", null, step),
        h(
          "dd",
          null,
          taskLink(submission, task_id, map_index),
          h("small", { class: "block" }, "page and logs", at && [" · ", time(at)]),
        ),
      ),
    ),
  );
}

const part = (name, title, ...children) =>
  h("section", { class: "part", "data-part": name, "data-key": name }, h("h3", null, title), ...children);

export function batches({ batches: all }) {
  if (!all?.length) return null;
  const rows = all.map((batch) =>
    h(
      "tr",
      { role: "row", "data-key": batch.id, "data-batch": batch.id, "data-state": batch.state },
      cell("Batch", "batch", null, copyable(batch.id)),
      cell("State", "state", null, badge(batch.state)),
      cell(
        "Requests",
        "requests",
        { class: "right", "data-value": batch.requests },
        count(batch.requests),
        batch.bytes !== null && h("small", null, ` ${size(batch.bytes)}`),
      ),
      cell(
        "The API says",
        "counts",
        { class: "wide" },
        batch.counts ? outcomesBar(batch.counts, 5) : h("span", { class: "muted" }, "not known yet"),
      ),
      cell(
        "Duration",
        "duration",
        { class: "right", "data-value": between(batch.created_at, batch.ended_at) },
        batch.ended_at ? duration(between(batch.created_at, batch.ended_at)) : "–",
      ),
      cell("Created", "created", { class: "right" }, time(batch.created_at)),
    ),
  );
  const columns = [
    { name: "Batch" },
    { name: "State" },
    { name: "Requests", right: true },
    { name: "The API says" },
    { name: "Duration", right: true },
    { name: "Created", right: true },
  ];
  return part("batches", plural(all.length, "shard"), table({ class: "cards", caption: "Shards" }, columns, rows));
}

/** A batch counts an answer that cannot be used as succeeded; what the round has to give is known when it is loaded. */
export function answers(round) {
  if (!round.loaded_at || !round.requests) return null;
  return part("answers", "Answers", outcomesBar(round.outcomes, 12));
}

function size(bytes) {
  const [unit, value] = bytes >= 1e6 ? ["MB", bytes / 1e6] : bytes >= 1e3 ? ["kB", bytes / 1e3] : ["B", bytes];
  return `${value < 10 ? Math.round(value * 10) / 10 : Math.round(value)} ${unit}`;
}

const ids = (examples) =>
  h(
    "span",
    { class: "ids" },
    examples.map((id) => h("code", { title: id }, id)),
  );

export function errors({ errors: all }) {
  if (!all?.length) return null;
  const rows = all.map(({ error, count: times, examples }) =>
    h(
      "tr",
      { role: "row" },
      cell("Requests", "count", { class: "right", "data-value": times }, count(times)),
      cell("Error", "error", { class: "grow" }, error),
      cell("For example", "examples", null, ids(examples)),
    ),
  );
  return part(
    "errors",
    "Commonest errors",
    table(
      { class: "cards", caption: "Commonest errors" },
      [{ name: "Requests", class: "narrow right" }, { name: "Error" }, { name: "For example" }],
      rows,
    ),
  );
}

const TOKENS = [
  ["input_tokens", "Input"],
  ["cache_read_tokens", "Cache read"],
  ["cache_write_5m_tokens", "Cache write 5 min"],
  ["cache_write_1h_tokens", "Cache write 1 h"],
  ["output_tokens", "Output"],
];

export function models({ by_model: all }) {
  if (!all?.length) return null;
  const right = (label, name, value, shown) => cell(label, name, { class: "right", "data-value": value }, shown);
  const rows = all.map((row) =>
    h(
      "tr",
      { role: "row", "data-model": row.model },
      cell("Model", "model", null, h("code", null, row.model)),
      right("Requests", "rows", row.rows, count(row.rows)),
      TOKENS.map(([name, label]) => right(label, name, row[name], count(row[name]))),
      right("Cost", "cost", row.cost_usd, money(row.cost_usd)),
      right("Live", "live_cost", row.live_cost_usd, money(row.live_cost_usd)),
    ),
  );
  const columns = [
    { name: "Model" },
    ...["Requests", ...TOKENS.map(([, label]) => label), "Cost", "Live"].map((name) => ({ name, right: true })),
  ];
  return part("models", "Models and tokens", table({ class: "cards", caption: "Models and tokens" }, columns, rows));
}

export function invalid({ invalid: all }) {
  const reasons = Object.entries(all ?? {});
  if (!reasons.length) return null;
  return part(
    "invalid",
    "Skipped before they were sent",
    h(
      "ul",
      { class: "reasons" },
      reasons.map(([why, examples]) =>
        h("li", null, h("div", null, why, h("small", null, ` · ${plural(examples.length, "id")}`)), ids(examples)),
      ),
    ),
  );
}

export function tables({ tables: all }, rows) {
  if (!all?.length) return null;
  return part(
    "tables",
    all.length === 1 ? "Table" : "Tables",
    h(
      "ul",
      { class: "tables" },
      all.map(({ table: name, warehouse_conn_id }) =>
        h(
          "li",
          null,
          h("code", null, name),
          h("small", null, " through the connection "),
          h("code", null, warehouse_conn_id),
        ),
      ),
    ),
    rows.tree(),
  );
}
