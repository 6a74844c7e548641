// Where the user is: the submission and the filters, in the address of the top window where Airflow embeds us.
const KEYS = ["submission", "dag_id", "run_id", "state", "model", "since", "until", "offset"];
const asked = new URLSearchParams(location.search);
const embedded = window.parent !== window && asked.has("scope");
const listeners = new Set();

export const base = location.pathname.slice(0, location.pathname.lastIndexOf("/claude-batch/"));

// The tab's own Dag or run; a Dag chosen on the page itself is a filter and can be let go again.
export const scope = {
  dag_id: ["dag", "run"].includes(asked.get("scope")) ? asked.get("dag_id") : null,
  run_id: asked.get("scope") === "run" ? asked.get("run_id") : null,
};

let current = read(asked);
let listed = null;

function read(params) {
  const place = {};
  for (const key of KEYS) {
    const value = scope[key] ?? params.get(key);
    if (value) place[key] = value;
  }
  return place;
}

function search(place) {
  const params = new URLSearchParams();
  if (!embedded && scope.dag_id) params.set("scope", asked.get("scope"));
  for (const key of KEYS) {
    if (place[key] && !(embedded && !place.submission && scope[key])) params.set(key, place[key]);
  }
  return String(params);
}

export const place = () => current;
export const onPlace = (listener) => listeners.add(listener);

/** The list as it was left; in a new window, that of the submission's address without its Dag and run. */
export function list() {
  return listed ?? { ...current, submission: null, dag_id: null, run_id: null };
}

function arrive(next) {
  if (!current.submission) listed = current;
  current = next;
  listeners.forEach((listener) => listener(current));
}

export function go(next, replace = false) {
  const found = read(new URLSearchParams(search(next)));
  if (embedded) window.parent.postMessage({ claudeBatches: "place", search: search(found), replace }, location.origin);
  else history[replace ? "replaceState" : "pushState"](null, "", `?${search(found)}`);
  arrive(found);
}

function follow(params) {
  const next = read(new URLSearchParams(params));
  if (search(next) !== search(current)) arrive(next);
}

const plain = (event) => !(event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey);

/** The attributes of a link to another place of this page. */
export function to(next) {
  const path = embedded ? window.parent.location.pathname : location.pathname;
  const onclick = (event) => {
    if (!plain(event)) return;
    event.preventDefault();
    go(next);
  };
  return { href: `${path}?${search(next)}`, target: embedded ? "_top" : null, onclick };
}

const path = (...parts) => [base, ...parts.map(encodeURIComponent)].join("/");

export const dagPath = (dag) => path("dags", dag);
export const runPath = (dag, run) => path("dags", dag, "runs", run);
export const taskPath = (dag, run, task, index) =>
  path("dags", dag, "runs", run, "tasks", task, ...(index >= 0 ? ["mapped", index] : []));
export const loginPath = () =>
  `${base}/api/v2/auth/login?next=${encodeURIComponent((embedded ? window.parent : window).location.href)}`;

// Airflow's own pages: its router opens them without reloading everything; any other kind of click stays native.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[target=_top]");
  if (!link || !embedded || event.defaultPrevented || !plain(event)) return;
  event.preventDefault();
  window.parent.postMessage({ claudeBatches: "go", path: link.pathname + link.search }, location.origin);
});

window.addEventListener("popstate", () => embedded || follow(location.search));
window.addEventListener("message", ({ origin, source, data }) => {
  if (embedded && origin === location.origin && source === window.parent && data?.claudeBatches === "place")
    follow(data.search);
});
