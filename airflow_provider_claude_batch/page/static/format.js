// Numbers, money, spans and moments as people read them.
const NONE = "–";
const known = (value) => value !== null && value !== undefined;
const number = new Intl.NumberFormat("en-US");
const dollars = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD" });
const mills = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", maximumFractionDigits: 3 });
const cents = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", maximumSignificantDigits: 2 });
const UNITS = [
  ["d", 86400],
  ["h", 3600],
  ["min", 60],
  ["s", 1],
];

export const count = (value) => (known(value) ? number.format(value) : NONE);
export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

export function money(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  return (size >= 1 || !size ? dollars : size >= 0.01 ? mills : cents).format(value);
}

/** Some answers may be of a model whose price is not known. */
export const atLeast = (value, unpriced) => `${unpriced && known(value) ? "≥ " : ""}${money(value)}`;

export function percent(value) {
  if (!known(value)) return NONE;
  const shown = value > 0.1 && value < 0.99 ? Math.round(value * 100) : Math.round(value * 1000) / 10;
  if (shown >= 100 && value < 1) return "99.9%";
  return shown === 0 && value > 0 ? "<0.1%" : `${shown}%`;
}

export function duration(seconds) {
  if (!known(seconds)) return NONE;
  let rest = Math.round(seconds);
  if (seconds < 1 && seconds > 0) return "under 1 s";
  const first = UNITS.findIndex(([, size]) => rest >= size);
  if (first < 0) return "0 s";
  return UNITS.slice(first, first + 2)
    .map(([unit, size]) => {
      const whole = Math.floor(rest / size);
      rest -= whole * size;
      return whole && `${whole} ${unit}`;
    })
    .filter(Boolean)
    .join(" ");
}

/** Only the largest unit: enough for "ended 3 h ago". */
export function about(seconds) {
  const [unit, size] = UNITS.find(([, least]) => seconds >= least) ?? ["s", 1];
  return `${Math.max(0, Math.floor(seconds / size))} ${unit}`;
}

export function left(days) {
  if (days <= 0) return "none left";
  return days >= 1 ? `${plural(Math.floor(days), "day")} left` : `${about(days * 86400)} left`;
}

export const between = (from, until) => (from && until ? (Date.parse(until) - Date.parse(from)) / 1000 : null);
export const since = (iso) => (iso ? (Date.now() - Date.parse(iso)) / 1000 : null);

const thisYear = new Intl.DateTimeFormat(undefined, {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});
const longAgo = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const dayOnly = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", timeZone: "UTC" });

export function moment(iso) {
  const date = new Date(iso);
  return (date.getFullYear() === new Date().getFullYear() ? thisYear : longAgo).format(date);
}

export const exact = (iso) => `${iso.slice(0, 19).replace("T", " ")} UTC`;
export const day = (iso) => dayOnly.format(new Date(`${iso}T00:00:00Z`));
export const words = (name) => name.replaceAll("_", " ");
