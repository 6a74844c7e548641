// What Airflow imports: a React component that embeds the page, and keeps its place in the address of the top window.
const NAME = "Claude Batches";
const KEYS = ["submission", "dag_id", "run_id", "state", "model", "since", "until", "offset"];
const page = new URL("../page", import.meta.url);
const base = page.pathname.slice(0, page.pathname.lastIndexOf("/claude-batch/"));

function ours(search) {
  const all = new URLSearchParams(search);
  return new URLSearchParams(KEYS.filter((key) => all.get(key)).map((key) => [key, all.get(key)]));
}

function merged(search, place) {
  const all = new URLSearchParams(search);
  KEYS.forEach((key) => all.delete(key));
  new URLSearchParams(place).forEach((value, key) => all.set(key, value));
  return String(all) && `?${all}`;
}

function wanted(dagId, runId, search) {
  const query = ours(search);
  // A submission in the address belongs to the run that it names; another run's tab shows its own list.
  if (runId && query.has("run_id") && query.get("run_id") !== runId) query.delete("submission");
  if (dagId) query.set("dag_id", dagId);
  if (runId) query.set("run_id", runId);
  return query;
}

function source(dagId, runId, search) {
  const query = wanted(dagId, runId, search);
  query.set("scope", runId ? "run" : dagId ? "dag" : "all");
  return `${page.pathname}?${query}`;
}

// A tab's panel does not always have a height of its own: fill what is left of the window.
function fit(frame) {
  const top = frame.getBoundingClientRect().top;
  frame.style.height = `${Math.max(480, Math.floor(window.innerHeight - top - 8))}px`;
}

// Where Airflow does not share its router: whole pages, and an address that only this history entry carries.
const native = (to) =>
  to.search === undefined
    ? location.assign(base + to)
    : history.replaceState(history.state, "", location.pathname + to.search);
const NATIVE = { useLocation: () => window.location, useNavigate: () => native, useNavigationType: () => "PUSH" };

// Airflow shows what it has just loaded once as another component than ever after, which starts the page anew at the
// first step: so that step, which leads nowhere, is taken at once, before there is a focus or anything else to lose.
let isNew = true;

function ClaudeBatches({ dagId, runId }) {
  const { createElement, useEffect, useMemo, useRef } = globalThis.React;
  const { useLocation, useNavigate, useNavigationType } = globalThis.ReactRouterDOM ?? NATIVE;
  const frame = useRef(null);
  const here = useLocation();
  const navigate = useNavigate();
  const moved = useNavigationType();
  const src = useMemo(() => source(dagId, runId, here.search), [dagId, runId]);
  const tell = () =>
    frame.current?.contentWindow?.postMessage(
      { claudeBatches: "place", search: String(wanted(dagId, runId, here.search)) },
      location.origin,
    );

  useEffect(() => {
    if (isNew) navigate({ search: here.search }, { replace: true, state: here.state, preventScrollReset: true });
    isNew = false;
  }, []);

  useEffect(() => {
    const resize = () => frame.current && fit(frame.current);
    const observer = new ResizeObserver(resize);
    observer.observe(document.body);
    if (frame.current.parentElement) observer.observe(frame.current.parentElement);
    window.addEventListener("resize", resize);
    resize();
    return () => {
      observer.disconnect();
      window.removeEventListener("resize", resize);
    };
  }, [src]);

  useEffect(() => {
    const hear = ({ origin, source: sender, data }) => {
      if (origin !== location.origin || sender !== frame.current?.contentWindow || !data?.claudeBatches) return;
      if (data.claudeBatches === "place") {
        const search = merged(location.search, data.search);
        navigate({ search }, { replace: data.replace, state: { claudeBatches: true }, preventScrollReset: true });
      } else if (data.path.startsWith(`${base}/dags/`)) navigate(data.path.slice(base.length));
      else location.assign(new URL(data.path, location.origin).href);
    };
    window.addEventListener("message", hear);
    return () => window.removeEventListener("message", hear);
  }, [navigate]);

  useEffect(() => {
    // What the page itself told us is not told back to it; back, forward and Airflow's own links are.
    if (here.state?.claudeBatches && moved !== "POP") return;
    tell();
  }, [here]);

  return createElement("iframe", {
    key: src,
    ref: frame,
    src,
    onLoad: tell, // what was said before reached nobody
    title: NAME,
    style: { display: "block", width: "100%", height: "100%", minHeight: 480, border: 0, colorScheme: "normal" },
  });
}

globalThis[NAME] = ClaudeBatches;
