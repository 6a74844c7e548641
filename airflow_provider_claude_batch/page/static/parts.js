// The small pieces that the list and a submission's own page have in common.
import { announce, h, s } from "./dom.js";
import {
  about,
  atLeast,
  between,
  count,
  duration,
  exact,
  left,
  moment,
  money,
  percent,
  plural,
  since,
  words,
} from "./format.js";
import { dagPath, loginPath, runPath, taskPath } from "./place.js";

export const OUTCOMES = [
  "succeeded",
  "truncated",
  "paused",
  "refused",
  "context_exceeded",
  "compacted",
  "empty",
  "invalid_output",
  "unknown_stop_reason",
  "errored",
  "expired",
  "canceled",
  "missing",
  "unreadable",
  "processing",
];
export const STATES = {
  in_progress: "in progress",
  canceling: "canceling",
  ended: "ended",
  loaded: "loaded",
  gone: "results deleted",
};
const SHAPES = {
  in_progress: "M8 2a6 6 0 1 0 6 6M8 5v3l2 1.5",
  canceling: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2M4 12l8-8",
  ended: "M8 2l6 6-6 6-6-6z",
  loaded: "M3 8.5l3.2 3.2L13 4.8",
  gone: "M4 4l8 8M12 4l-8 8",
  warning: "M8 2.5l6.2 11H1.8zM8 7v3M8 11.8v.4",
};

export const icon = (name) =>
  s("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true" }, s("path", { d: SHAPES[name] }));
export const badge = (state) =>
  h("span", { class: `badge ${state}`, "data-state": state }, icon(state), STATES[state] ?? words(state));
export const time = (iso) => (iso ? h("time", { datetime: iso, title: exact(iso) }, moment(iso)) : "–");
export const inFlight = ({ state }) => state === "in_progress" || state === "canceling";

export function flag({ days_left, overdue }) {
  if (days_left === null) return null;
  if (!overdue) return h("small", { class: "block", "data-flag": "not_loaded" }, `not loaded yet · ${left(days_left)}`);
  return h(
    "span",
    { class: `flag ${days_left < 7 ? "urgent" : ""}`, "data-flag": "never_loaded" },
    icon("warning"),
    `never loaded · ${left(days_left)}`,
  );
}

export const airflowLink = (href, text, attributes) =>
  h("a", { href, target: "_top", title: text, ...attributes }, text);
export const dagLink = ({ dag_id }) => airflowLink(dagPath(dag_id), dag_id, { "data-field": "dag" });
export const runLink = ({ dag_id, run_id }) => airflowLink(runPath(dag_id, run_id), run_id, { "data-field": "run" });
export const taskName = (task, index) => (index >= 0 ? `${task} [${index}]` : task);
export const taskLink = ({ dag_id, run_id }, task, index) =>
  airflowLink(taskPath(dag_id, run_id, task, index), taskName(task, index), { "data-field": "task" });

export const ordered = (outcomes) =>
  Object.entries(outcomes ?? {})
    .filter(([, value]) => value)
    .sort(([a], [b]) => OUTCOMES.indexOf(a) - OUTCOMES.indexOf(b));

/** Where all answers were there already, nothing more is to come. */
export const without = ({ requests, reused }) => (reused && !requests ? "all reused" : "nothing yet");

/** A bar for the eyes, and the same in words below it. */
export function outcomesBar(outcomes, most = 3, none = "nothing yet") {
  const all = ordered(outcomes);
  const total = all.reduce((sum, [, value]) => sum + value, 0);
  let x = 0;
  const segments = all.map(([name, value]) => {
    const share = (value / total) * 100;
    const segment = s("rect", {
      class: `tone tone-${name}`,
      x: `${x}%`,
      width: `${Math.max(share, 0.6)}%`,
      height: "100%",
    });
    x += share;
    return segment;
  });
  const said = all.map(([name, value]) =>
    h(
      "span",
      { class: "outcome", "data-outcome": name, "data-value": value },
      h("i", { class: `dot tone-${name}` }),
      `${count(value)} ${words(name)}`,
    ),
  );
  return [
    s("svg", { class: "bar", "aria-hidden": "true" }, segments),
    h(
      "span",
      { class: "outcomes" },
      said.length ? said.slice(0, most) : none,
      said.length > most && h("span", { class: "outcome" }, `+${said.length - most} more`),
    ),
  ];
}

/** What is worth knowing about the time depends on the state. */
export function times(submission) {
  const { state, submitted_at, ended_at, expires_at, loaded_at } = submission;
  const ago = (iso) => h("span", { title: exact(iso) }, `${about(since(iso))} ago`);
  if (inFlight(submission)) {
    const rest = expires_at && -since(expires_at);
    return [
      h("div", null, `${duration(Math.floor(since(submitted_at) / 60) * 60)} so far`),
      rest && h("small", { title: exact(expires_at) }, rest > 0 ? `expires in ${about(rest)}` : "past its expiry"),
    ];
  }
  return [
    h("div", null, ended_at ? duration(between(submitted_at, ended_at)) : "–"),
    state === "loaded" && loaded_at
      ? h("small", null, "loaded ", ago(loaded_at))
      : ended_at && h("small", null, "ended ", ago(ended_at)),
  ];
}

export function costs({ cost_usd, live_cost_usd, saved_usd, estimate_usd, unpriced }) {
  if (cost_usd === null)
    return estimate_usd === null
      ? "–"
      : [h("div", { class: "muted" }, `≈ ${money(estimate_usd)}`), h("small", null, "estimate")];
  const share = live_cost_usd ? ` (${percent(saved_usd / live_cost_usd)})` : "";
  return [
    h("div", null, atLeast(cost_usd, unpriced)),
    saved_usd !== null && h("small", { class: "saved" }, `saved ${money(saved_usd)}${share}`),
  ];
}

export function shards({ shards: { ended, total } }) {
  return [
    h("span", null, `${count(ended)} of ${count(total)}`),
    h("progress", { max: total || 1, value: ended, "aria-hidden": "true" }),
  ];
}

export const requestsNote = ({ reused, skipped, unsent }) =>
  Object.entries({ reused, skipped, "not sent": unsent })
    .filter(([, value]) => value)
    .map(([what, value]) => `${count(value)} ${what}`)
    .join(" · ");

export function copyable(text) {
  const copy = async ({ currentTarget: button }) => {
    await navigator.clipboard?.writeText(text).then(
      () => {
        button.dataset.copied = "1";
        announce("Copied");
      },
      () => announce("The browser does not allow copying"),
    );
    setTimeout(() => delete button.dataset.copied, 1500);
  };
  return h(
    "span",
    { class: "copyable" },
    h("code", { title: text }, text),
    h("button", { type: "button", class: "copy", onclick: copy, "aria-label": `Copy ${text}`, title: "Copy" }),
  );
}

export function notes(problems) {
  return problems?.length
    ? h(
        "ul",
        { class: "note", "data-note": "live" },
        problems.map((problem) => h("li", null, problem)),
      )
    : null;
}

/** Name receipts that are left out, with links to the tasks that wrote them. */
export function leftOut({ total, receipts } = {}) {
  if (!total) return null;
  const more = total - receipts.length;
  const said = `${plural(total, "receipt")} cannot be read, and ${total === 1 ? "is" : "are"} not counted on this page:`;
  const task = (one) => taskLink(one, one.task_id, one.map_index);
  return h(
    "div",
    { class: "note", "data-note": "left_out", "data-value": total, "data-key": "left_out" },
    h("strong", null, said),
    h(
      "ul",
      null,
      receipts.map((one) => h("li", null, dagLink(one), " · ", runLink(one), " · ", task(one), `: ${one.why}.`)),
      more > 0 && h("li", null, `and ${count(more)} older.`),
    ),
  );
}

export function trouble(problem, retry) {
  const login =
    problem.status === 401 && h("a", { class: "button primary", href: loginPath(), target: "_top" }, "Log in");
  return h(
    "div",
    { class: "trouble", role: "alert", "data-problem": problem.status ?? 0 },
    h("strong", null, problem.message),
    login,
    h("button", { type: "button", class: "button", onclick: retry }, "Try again"),
  );
}

/** A table that stays one for screen readers where the style makes cards of its rows. */
export function table({ caption, ...attributes }, columns, rows) {
  const head = columns.map(({ name, right, hidden, ...rest }) =>
    h(
      "th",
      { scope: "col", role: "columnheader", class: right ? "right" : null, ...rest },
      hidden ? h("span", { class: "unseen" }, name) : name,
    ),
  );
  return h(
    "table",
    { role: "table", ...attributes },
    h("caption", { class: "unseen" }, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
    h("tbody", { role: "rowgroup" }, rows),
  );
}

export const cell = (label, field, attributes, ...children) =>
  h("td", { role: "cell", "data-label": label, "data-field": field, ...attributes }, ...children);
