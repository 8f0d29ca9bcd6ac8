// As many as objectives: theme.css has them.
export const colour = (index) => `var(--s${index % 31})`;

// Numbers with the digits that matter, as services/dashboard/figures.py writes them, and times in the viewer's own zone.
export function figure(value) {
  if (Array.isArray(value)) value = value[value.length - 1];
  if (value === null || value === undefined || value === "" || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en-US");
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  return size >= 999.5 ? Math.round(value).toLocaleString("en-US") : value.toPrecision(3);
}

export function percent(value) {
  return typeof value === "number" ? `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)}%` : "–";
}

const DAY = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const WHOLE = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

export function moment(seconds) {
  if (typeof seconds !== "number") return "–";
  const at = new Date(seconds * 1000);
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? CLOCK.format(at) : `${DAY.format(at)}, ${CLOCK.format(at)}`;
}

export function wholeMoment(seconds) {
  return typeof seconds === "number" ? WHOLE.format(new Date(seconds * 1000)) : "";
}
