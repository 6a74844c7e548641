// What the list and the charts are narrowed to.
import { h } from "./dom.js";
import { count } from "./format.js";
import { STATES } from "./parts.js";
import { go, place, scope } from "./place.js";

const NARROWING = ["dag_id", "run_id", "state", "model", "since", "until"];

export const narrowed = () => NARROWING.some((name) => place()[name] && !scope[name]);

/** Another filter starts on the first page again. */
export function narrow(changes, replace = false) {
  const next = { ...place(), ...changes, offset: null };
  if ("dag_id" in changes) next.run_id = null;
  go(next, replace);
}

export const reset = () => go({});

function states(counts) {
  const chosen = place().state ?? "";
  const total = Object.values(counts ?? {}).reduce((sum, value) => sum + value, 0);
  const shown = Object.keys(STATES).filter((state) => state !== "canceling" || counts?.canceling || chosen === state);
  return h(
    "div",
    { class: "segments", role: "group", "aria-label": "State", "data-filter": "state" },
    ["", ...shown].map((state) =>
      h(
        "button",
        {
          type: "button",
          "data-value": state,
          "aria-pressed": String(chosen === state),
          onclick: () => narrow({ state }),
        },
        state ? STATES[state] : "all",
        counts && h("span", { class: "count" }, count(state ? (counts[state] ?? 0) : total)),
      ),
    ),
  );
}

function choice(label, name, values, all) {
  const chosen = place()[name] ?? "";
  const options = [...new Set([...(values ?? []), chosen])].filter(Boolean);
  return h(
    "label",
    { class: "field" },
    h("span", null, label),
    h(
      "select",
      { "data-filter": name, onchange: (event) => narrow({ [name]: event.target.value }) },
      h("option", { value: "" }, all),
      options.map((value) => h("option", { value, selected: value === chosen }, value)),
    ),
  );
}

const EARLIEST = "2020-01-01"; // there were no batches before
let passed = null;

/** Who types passes through other dates: those out of bounds are let pass, the rest is one step of the history. */
function date(label, name) {
  const chosen = () => place()[name] ?? "";
  const onchange = ({ target: { value, validity } }) => {
    if (!validity.valid || value === chosen()) return;
    narrow({ [name]: value }, place() === passed);
    passed = place();
  };
  const onblur = ({ target }) => {
    passed = null;
    if (!target.validity.valid) target.value = chosen();
  };
  const bounds = { min: EARLIEST, max: new Date().toISOString().slice(0, 10) };
  return h(
    "label",
    { class: "field" },
    h("span", null, label),
    h("input", { type: "date", "data-filter": name, value: chosen(), ...bounds, onchange, onblur }),
  );
}

export function filters(answer) {
  const run = !scope.run_id && place().run_id;
  return h(
    "div",
    { class: "filters", role: "search", "aria-label": "Filters" },
    states(answer?.states),
    h(
      "div",
      { class: "fields" },
      !scope.dag_id && choice("Dag", "dag_id", answer?.dags, "all Dags"),
      choice("Model", "model", answer?.models, "all models"),
      date("From", "since"),
      date("To", "until"),
      run &&
        h(
          "button",
          {
            type: "button",
            class: "chip",
            title: run,
            onclick: () => narrow({ run_id: null }),
            "aria-label": `Run ${run}: remove this filter`,
          },
          h("span", null, `run ${run}`),
          " ×",
        ),
      narrowed() &&
        h("button", { type: "button", class: "button quiet", "data-action": "reset", onclick: reset }, "Reset"),
    ),
  );
}
