// What each chart shows: columns of stacked parts, ticks, a legend, a summary in words, and the exact values.
import { count, day, duration, money, percent, plural, words } from "./format.js";
import { ordered, OUTCOMES } from "./parts.js";

const MODELS = 6;
const COLUMNS = 92;
const DAY = 86400000;
const DAYS = 4000;
const sum = (rows, name) => rows.reduce((total, row) => total + (row[name] ?? 0), 0);
const cell = (value, shown, text) => ({ value, shown, text });

/** First and last day; of an endless span, those between which something happened. */
function ends(answer) {
  const [first, last] = [Date.parse(answer.since), Date.parse(answer.until)];
  if (last - first < DAYS * DAY) return [first, last];
  const known = [...answer.spend, ...answer.outcomes].map((row) => Date.parse(row.day));
  const end = Math.min(last, Math.max(...known));
  return [Math.max(first, Math.min(...known), end - DAYS * DAY), end];
}

/** Every day of the span, so that a quiet day is a gap; several days share a column when there are too many. */
function columns(answer) {
  const [first, last] = ends(answer);
  const days = [];
  for (let at = first; at <= last; at += DAY) days.push(new Date(at).toISOString().slice(0, 10));
  const size = Math.max(1, Math.ceil(days.length / COLUMNS));
  return Array.from({ length: Math.ceil(days.length / size) }, (_, i) => days.slice(i * size, (i + 1) * size));
}

const named = (days) => (days.length > 1 ? `${day(days[0])} – ${day(days.at(-1))}` : day(days[0]));

/** Round ticks from nothing to a little above the highest. */
function scale(highest, show, whole = false) {
  if (!(highest > 0)) return { max: 0, ticks: [] };
  const rough = highest / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  if (whole) step = Math.max(1, Math.ceil(step));
  const steps = Math.ceil(highest / step - 1e-9);
  return {
    max: step * steps,
    ticks: Array.from({ length: steps + 1 }, (_, i) => ({ value: i * step, shown: show(i * step) })),
  };
}

const compact = new Intl.NumberFormat("en-US", {
  style: "currency",
  currency: "USD",
  notation: "compact",
  maximumSignificantDigits: 3,
});

export function spend(answer) {
  const rows = answer.spend;
  const models = [...new Set(rows.map(({ model }) => model))].sort((a, b) => cost(rows, b) - cost(rows, a));
  const tones = new Map(models.map((model, i) => [model, i < MODELS ? `model-${i}` : "other"]));
  const all = columns(answer).map((days) => {
    const here = rows.filter((row) => days.includes(row.day));
    const parts = models
      .map((model) => ({ model, value: cost(here, model), tone: tones.get(model) }))
      .filter(({ value }) => value > 0);
    const saved = sum(here, "saved_usd");
    const lines = [
      ...parts.map(({ model, value, tone }) => ({ tone, text: `${model} ${money(value)}` })),
      { tone: "saved", text: `saved ${money(saved)}` },
    ];
    return {
      label: day(days[0]),
      title: `${named(days)}: ${money(sum(here, "cost_usd"))}`,
      lines,
      parts: [...parts, { value: Math.max(0, saved), tone: "saved" }],
    };
  });
  const legend = models.slice(0, MODELS).map((model) => ({ tone: tones.get(model), label: model }));
  if (models.length > MODELS) legend.push({ tone: "other", label: `${models.length - MODELS} other models` });
  const [spent, saved] = [money(sum(rows, "cost_usd")), money(sum(rows, "saved_usd"))];
  return {
    name: "spend",
    title: "Spend and saving by day",
    nothing: "Nothing was spent in this time.",
    columns: all,
    summary: `${spent} spent and ${saved} saved from ${day(answer.since)} to ${day(answer.until)}.`,
    ...scale(Math.max(0, ...all.map(({ parts }) => sum(parts, "value"))), (value) => compact.format(value)),
    legend: [...legend, { tone: "saved", label: "saved against live calls" }],
    table: {
      head: ["Day", "Model", "Requests", "Cost", "Live", "Saved"],
      rows: rows.map((row) => [
        cell(row.day, day(row.day)),
        cell(row.model, row.model, true),
        cell(row.rows, count(row.rows)),
        cell(row.cost_usd, money(row.cost_usd)),
        cell(row.live_cost_usd, money(row.live_cost_usd)),
        cell(row.saved_usd, money(row.saved_usd)),
      ]),
    },
  };
}

const cost = (rows, model) =>
  sum(
    rows.filter((row) => row.model === model),
    "cost_usd",
  );

export function outcomes(answer) {
  const rows = answer.outcomes;
  const totals = added(rows);
  const names = OUTCOMES.filter((name) => totals[name]);
  const all = columns(answer).map((days) => {
    const here = added(rows.filter((row) => days.includes(row.day)));
    const total = Object.values(here).reduce((a, b) => a + b, 0);
    const lines = ordered(here).map(([tone, value]) => ({
      tone,
      text: `${count(value)} ${words(tone)}, ${percent(value / total)}`,
    }));
    return {
      label: day(days[0]),
      title: `${named(days)}: ${plural(total, "request")}`,
      lines,
      parts: ordered(here).map(([tone, value]) => ({ tone, value: value / total })),
    };
  });
  const total = Object.values(totals).reduce((a, b) => a + b, 0);
  const rates = names.map((name) => `${percent(totals[name] / total)} ${words(name)}`);
  return {
    name: "outcomes",
    title: "Outcomes by day",
    nothing: "No request has ended in this time.",
    columns: all,
    summary: `Of ${plural(total, "request")}, ${rates.join(", ")}.`,
    max: total ? 1 : 0,
    ticks: [0, 0.25, 0.5, 0.75, 1].map((value) => ({ value, shown: percent(value) })),
    legend: names.map((tone) => ({ tone, label: words(tone) })),
    table: {
      head: ["Day", ...names.map(words)],
      rows: rows.map((row) => [
        cell(row.day, day(row.day)),
        ...names.map((name) => cell(row.outcomes[name] ?? 0, count(row.outcomes[name] ?? 0))),
      ]),
    },
  };
}

function added(rows) {
  const totals = {};
  for (const row of rows)
    for (const [name, value] of Object.entries(row.outcomes)) totals[name] = (totals[name] ?? 0) + value;
  return totals;
}

export function durations({ durations: buckets, median_seconds: median, p95_seconds: p95 }) {
  const upto = ({ upto_seconds }) => (upto_seconds === null ? "longer" : `up to ${duration(upto_seconds)}`);
  const marks = [
    ["median", median],
    ["95th percentile", p95],
  ].filter(([, value]) => value !== null);
  const said = marks.map(([name, value]) => `${name} ${duration(value)}`);
  return {
    name: "durations",
    title: "Processing time of batches",
    nothing: "No batch has ended in this time.",
    tight: true,
    summary: `${plural(sum(buckets, "batches"), "batch", "batches")}${said.length ? `, ${said.join(", ")}` : ""}.`,
    columns: buckets.map((bucket) => ({
      label: bucket.upto_seconds === null ? "" : duration(bucket.upto_seconds),
      title: upto(bucket),
      lines: [{ tone: "processing", text: plural(bucket.batches, "batch", "batches") }],
      parts: [{ value: bucket.batches, tone: "processing" }],
    })),
    ...scale(Math.max(0, ...buckets.map(({ batches }) => batches)), count, true),
    marks: marks.map(([name, value]) => ({
      at: position(buckets, value),
      label: `${name === "median" ? name : "p95"} ${duration(value)}`,
    })),
    legend: [],
    table: {
      head: ["Time", "Batches"],
      rows: [
        ...buckets.map((bucket) => [
          cell(bucket.upto_seconds, upto(bucket)),
          cell(bucket.batches, count(bucket.batches)),
        ]),
        ...marks.map(([name, value]) => [cell(null, name), cell(value, duration(value))]),
      ],
    },
  };
}

/** How many columns from the left a time stands, between the edges of its own column. */
function position(buckets, seconds) {
  const found = buckets.findIndex(({ upto_seconds }) => upto_seconds === null || seconds <= upto_seconds);
  if (found < 0) return buckets.length;
  const from = found ? buckets[found - 1].upto_seconds : 0;
  const until = buckets[found].upto_seconds;
  return found + (until === null ? 0.5 : (seconds - from) / (until - from));
}
