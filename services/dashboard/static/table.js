// A table whose cells are text, figures, times, statuses or sparklines. Everything is a text node or an SVG path of numbers.
import { h } from "vue";
import { colour, figure, moment, percent, wholeMoment } from "/assets/format.js";

const STATUS = { running: "live", starting: "live", validating: "live", queued: "wait", pausing: "wait", paused: "wait", cancelling: "wait", succeeded: "good", failed: "bad", cancelled: "off" };

function spark(values, hue) {
  const known = values.filter((value) => typeof value === "number");
  if (known.length < 2) return h("span", { class: "faint" }, "–");
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const y = (value) => (high - low < 1e-12 ? 10 : 18 - (16 * (value - low)) / (high - low));
  const points = values.map((value, i) => (typeof value === "number" ? `${((64 * i) / (values.length - 1)).toFixed(1)},${y(value).toFixed(1)}` : null)).filter(Boolean);
  return h("svg", { class: "spark", viewBox: "-2 0 68 20", "aria-hidden": "true" }, [h("polyline", { points: points.join(" "), style: { stroke: hue } })]);
}

const KINDS = {
  text: (value) => h("span", { class: "cell-text", dir: "auto" }, value === null || value === undefined ? "–" : String(value)),
  long: (value) => h("div", { class: "cell-long", dir: "auto", tabindex: "0" }, value === null || value === undefined ? "–" : String(value)),
  code: (value) => h("code", value === null || value === undefined ? "–" : String(value)),
  number: (value) => figure(value),
  percent: (value) => percent(value),
  time: (value) => h("time", { title: wholeMoment(value) }, moment(value)),
  status: (value) => h("span", { class: ["pill", `pill-${STATUS[value] || "off"}`] }, String(value)),
  level: (value) => h("span", { class: ["pill", `pill-${{ error: "bad", warning: "wait" }[value] || "off"}`] }, String(value)),
  link: (value) => (value ? h("a", { href: `/jobs/${encodeURIComponent(value.id)}`, dir: "auto" }, String(value.text)) : "–"),
  file: (value) => (value ? h("a", { href: value.href, "aria-label": value.name }, "Download") : "–"),
  progress: (value) => [
    h("span", { class: "progress-text" }, value.text),
    h("span", { class: "bar", "aria-hidden": "true" }, [h("span", { style: { width: `${Math.round(100 * Math.min(1, Math.max(0, value.share || 0)))}%` } })]),
  ],
  sparks: (value) => h("div", { class: "sparks" }, (value || []).map((item, i) => h("div", { class: "sparkline", title: item.name }, [spark(item.values, colour(i)), h("span", { class: "spark-name" }, item.name), h("b", figure(item.now))]))),
  mix: (value) => h("div", { class: "mix-cell" }, [
    h("span", { class: "mix", "aria-hidden": "true" }, (value || []).map((item, i) => h("span", { style: { flexGrow: item.weight, background: colour(i) } }))),
    h("span", { class: "mix-text" }, (value || []).map((item) => `${item.name} ${percent(item.weight)}`).join(" · ")),
  ]),
  yes: (value) => (value ? "yes" : ""),
};

export default {
  props: {
    columns: Array, // {key, label, kind, sortable, wide}
    rows: Array, // {id, ...}
    caption: String,
    empty: { type: String, default: "Nothing yet" },
    loading: Boolean,
    pick: String, // what a row's button does, such as "Select"; absent: rows are not picked
    chosen: { type: [String, Number, Array], default: null },
    sort: { type: String, default: "" }, // a key, with - before it for the highest first
    csv: Boolean,
  },
  emits: ["pick", "sort", "csv"],
  methods: {
    isChosen(id) {
      return Array.isArray(this.chosen) ? this.chosen.includes(id) : this.chosen === id;
    },
    header(column) {
      const key = this.sort.replace(/^-/, "");
      const direction = key !== column.key ? "none" : this.sort.startsWith("-") ? "descending" : "ascending";
      const classes = ["number", "percent"].includes(column.kind) ? "right" : "";
      if (!column.sortable) return h("th", { scope: "col", class: classes }, column.label);
      const next = direction === "descending" ? column.key : `-${column.key}`;
      return h("th", { scope: "col", class: classes, "aria-sort": direction }, [
        h("button", { type: "button", class: "sort", onClick: () => this.$emit("sort", next) }, [column.label, h("span", { "aria-hidden": "true" }, { none: "", ascending: " ↑", descending: " ↓" }[direction])]),
      ]);
    },
  },
  render() {
    const cells = (row) => this.columns.map((column) => h("td", { "data-label": column.label, class: [["number", "percent"].includes(column.kind) && "right", column.wide && "wide"] }, [KINDS[column.kind || "text"](row[column.key])]));
    const rows = (this.rows || []).map((row) => h("tr", { key: row.id, class: [this.isChosen(row.id) && "chosen", row.tone && `tone-${row.tone}`] }, [
      this.pick ? h("td", { class: "pick" }, [h("button", { type: "button", class: "quiet small", "aria-pressed": String(this.isChosen(row.id)), "aria-label": `${this.pick} ${row.name || row.id}`, onClick: () => this.$emit("pick", row.id) }, this.isChosen(row.id) ? "✓" : this.pick)]) : null,
      ...cells(row),
    ]));
    return h("div", { class: "table-block" }, [
      h("div", { class: "table-scroll", tabindex: rows.length ? "0" : undefined, role: "region", "aria-label": this.caption }, [
        rows.length
          ? h("table", [h("caption", { class: "unseen" }, this.caption), h("thead", [h("tr", [this.pick ? h("th", { scope: "col" }, [h("span", { class: "unseen" }, this.pick)]) : null, ...this.columns.map((column) => this.header(column))])]), h("tbody", rows)])
          : h("p", { class: ["table-empty", this.loading && "is-loading"], role: "status" }, this.loading ? "Loading" : this.empty),
      ]),
      this.csv && rows.length ? h("button", { type: "button", class: "quiet small csv", "aria-label": `Save ${this.caption} as CSV`, onClick: () => this.$emit("csv") }, "CSV") : null,
    ]);
  },
};
