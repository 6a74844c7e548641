// The rows of the list: one for a submission, and one for each of its rounds below it.
import { h } from "./dom.js";
import { percent, plural } from "./format.js";
import {
  badge, cell, costs, dagLink, flag, outcomesBar, requestsNote, runLink, shards, taskLink, taskName, time, times,
  without,
} from "./parts.js";
import { place, scope, to } from "./place.js";

export function columns() {
  const whose = [!scope.dag_id && "Dag", !scope.run_id && "run", "task"].filter(Boolean).join(", ");
  return [
    { name: "Submitted", class: "c-submitted", "aria-sort": "descending" },
    { name: whose[0].toUpperCase() + whose.slice(1), class: "c-whose" },
    { name: "State", class: "c-state" },
    { name: "Shards", class: "c-shards", title: "Ended, of how many" },
    { name: "Time", class: "c-time" },
    { name: "Requests" },
    { name: "Cost", class: "c-cost right" },
    { name: "Cache hits", class: "c-cache right" },
  ];
}

export function row(submission, open, fold) {
  const { id, dag_id, run_id, submit_task, map_index, rounds, submitted_at } = submission;
  const retried = rounds.length > 1;
  const here = to({ ...place(), submission: id, dag_id, run_id });
  return h(
    "tr",
    { role: "row", "data-key": id, "data-submission": id, "data-state": submission.state, class: open ? "open" : null },
    cell(
      "Submitted",
      "submitted",
      null,
      h(
        "a",
        { ...here, "data-action": "open" },
        time(submitted_at),
        h("span", { class: "unseen" }, `, submission ${id}`),
      ),
      retried &&
        h(
          "button",
          { type: "button", class: "fold", "aria-expanded": String(open), onclick: fold, "data-action": "fold" },
          `${rounds.length} rounds`,
        ),
    ),
    cell(
      "Task",
      "task-cell",
      { class: "whose" },
      !scope.dag_id && h("div", { class: "dag" }, dagLink(submission)),
      !scope.run_id && h("div", null, runLink(submission)),
      h("div", null, taskLink(submission, submit_task, map_index)),
    ),
    cell("State", "state", null, badge(submission.state), flag(submission)),
    ...figures(submission),
  );
}

export function roundRow(submission, round) {
  return h(
    "tr",
    {
      role: "row",
      class: "round",
      "data-key": `${submission.id}/${round.attempt}`,
      "data-round": round.attempt,
      "data-state": round.state,
    },
    cell("Round", "attempt", null, `Round ${round.attempt}`),
    cell(
      "Task",
      "task-cell",
      { class: "whose" },
      h(
        "div",
        { title: taskName(round.submit_task, round.map_index) },
        taskLink(submission, round.submit_task, round.map_index),
      ),
    ),
    cell("State", "state", null, badge(round.state), flag(round)),
    ...figures(round),
  );
}

function figures(part) {
  const note = requestsNote(part);
  return [
    cell("Shards ended", "shards", { "data-value": `${part.shards.ended}/${part.shards.total}` }, shards(part)),
    cell("Time", "time", null, times(part)),
    cell(
      "Requests",
      "outcomes",
      { "data-value": part.requests },
      h("div", null, `${plural(part.requests, "request")}`, note && h("small", null, ` · ${note}`)),
      outcomesBar(part.outcomes, 3, without(part)),
    ),
    cell("Cost", "cost", { class: "right", "data-value": part.cost_usd }, costs(part)),
    cell("Cache hits", "cache", { class: "right", "data-value": part.cache_hit_rate }, percent(part.cache_hit_rate)),
  ];
}
