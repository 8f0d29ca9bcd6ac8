// A figure with an ECharts canvas. Options come from charts.py; colours are names of the theme (var(--s0)), looked up here,
// and looked up again when light turns to dark. All text is drawn on the canvas: tooltips too, so that no name is ever HTML.
import { echarts } from "nicegui-echart";
import { h } from "vue";
import { withRoom, withSymbols } from "/assets/alone.js";
import { bars } from "/assets/bars.js";
import { figure } from "/assets/format.js";

function themed(value, style) {
  if (typeof value === "string") {
    const found = /^var\((--[a-z0-9-]+)(?:,\s*([0-9.]+))?\)$/.exec(value);
    if (!found) return value;
    const colour = style.getPropertyValue(found[1]).trim();
    return found[2] ? faded(colour, Number(found[2])) : colour;
  }
  if (Array.isArray(value)) return value.map((item) => themed(item, style));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, style)]));
  }
  return value;
}

function faded(hex, alpha) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

const themes = new MutationObserver(() => document.dispatchEvent(new Event("equipoise:theme")));
themes.observe(document.body, { attributes: true, attributeFilter: ["class"] });

export default {
  props: {
    title: String,
    note: String,
    label: String,
    empty: { type: String, default: "Nothing yet" },
    loading: Boolean,
    option: Object,
    height: { type: Number, default: 180 },
    rows: Array, // of the first dataset
    full: Boolean, // the option itself has data
  },
  emits: ["pick", "zoom"], // the first and the last step that somebody has zoomed in to
  data() {
    return { count: (this.rows || []).length, filled: Boolean(this.full) };
  },
  created() {
    // Not reactive: Vue must not walk through thousands of numbers.
    this.datasets = [this.rows || []];
    this.extra = {};
    this.close = null; // rows of a part in place of those of the first dataset that are there
    this.chart = null;
    this.isDirty = true;
  },
  mounted() {
    this.onTheme = () => this.draw(true);
    document.addEventListener("equipoise:theme", this.onTheme);
    this.onPrint = () => this.draw(true, true);
    addEventListener("beforeprint", this.onPrint);
    this.sight = new IntersectionObserver((found) => {
      this.isSeen = found[found.length - 1].isIntersecting;
      if (this.isSeen && this.isDirty) this.draw(!this.chart);
    }, { rootMargin: "200px" });
    this.sight.observe(this.$refs.canvas);
    this.size = new ResizeObserver(() => this.chart?.resize());
    this.size.observe(this.$refs.canvas);
  },
  beforeUnmount() {
    document.removeEventListener("equipoise:theme", this.onTheme);
    removeEventListener("beforeprint", this.onPrint);
    this.sight.disconnect();
    this.size.disconnect();
    clearTimeout(this.zooming);
    this.chart?.dispose();
  },
  methods: {
    // Replaces and appends the rows of a dataset from `start` on.
    patch(dataset, start, rows) {
      const old = this.datasets[dataset] || [];
      this.datasets[dataset] = old.slice(0, start).concat(rows);
      this.count = Math.max(...this.datasets.map((found) => found.length));
      if (!dataset && !start && this.close) {
        this.close = null; // of rows that are gone
        this.zoomed();
      }
      this.refresh(false);
    },
    look(first, last, rows) {
      this.close = { first, last, rows };
      this.refresh(false);
    },
    zoomed() {
      clearTimeout(this.zooming);
      const rows = this.datasets[0];
      if (rows.length < 2 || rows[1][0] - rows[0][0] < 2) return; // every step is there
      this.zooming = setTimeout(() => {
        const { start, end, startValue, endValue } = this.chart.getOption().dataZoom[0];
        if (end - start < 100) {
          this.$emit("zoom", [Math.floor(startValue), Math.ceil(endValue)]);
        } else if (this.close) {
          this.close = null;
          this.refresh(false);
        }
      }, 150);
    },
    sources() {
      if (!this.close) return this.datasets;
      const { first, last, rows } = this.close;
      const [all, ...others] = this.datasets;
      return [[...all.filter((row) => row[0] < first), ...rows, ...all.filter((row) => row[0] > last)], ...others];
    },
    hover(value) {
      const series = this.extra.series || this.option.series;
      if (series.some((one) => one.id === "hovered")) this.chart.setOption({ series: [{ id: "hovered", data: bars(value) }] });
    },
    // Parts of the option that change with the job: marks, the axes of another pair, series.
    merge(part, replace) {
      this.extra = replace ? part : { ...this.extra, ...part };
      this.filled = true;
      this.refresh(Boolean(replace));
    },
    refresh(whole) {
      this.isDirty = true;
      this.isWhole = this.isWhole || whole;
      if (this.isSeen && !this.pending) {
        this.pending = requestAnimationFrame(() => {
          this.pending = null;
          this.draw(this.isWhole);
        });
      }
    },
    // On paper, also what was never scrolled into sight, and at once: no frame comes before the page is taken.
    draw(whole, isPrinted) {
      const canvas = this.$refs.canvas;
      if (!canvas || (!this.isSeen && !this.chart && !isPrinted) || !canvas.clientWidth) return;
      if (!this.chart) {
        this.chart = echarts.init(canvas, null, { renderer: "canvas" });
        this.chart.on("click", (event) => {
          if (event.componentType === "series") this.$emit("pick", { series: event.seriesId, index: event.dataIndex, value: event.value });
        });
        this.chart.on("datazoom", () => this.zoomed());
        this.chart.on("mouseover", "series.scatter", (event) => this.hover(event.value));
        this.chart.on("mouseout", "series.scatter", () => this.hover(null));
      }
      const datasets = this.sources();
      const style = getComputedStyle(document.body);
      const option = themed({ ...this.option, ...this.extra }, style);
      option.series = withSymbols(option.series, datasets);
      const axis = withRoom(option.xAxis, datasets.flat());
      if (axis) option.xAxis = axis;
      option.dataset = datasets.map((source) => ({ source, sourceHeader: false }));
      option.tooltip = { ...(option.tooltip || {}), renderMode: "richText", valueFormatter: figure, confine: true };
      this.chart.setOption(whole || this.isWhole ? option : { dataset: option.dataset, series: option.series, ...(axis && { xAxis: axis }) }, { notMerge: whole || Boolean(this.isWhole), lazyUpdate: !isPrinted });
      this.isDirty = this.isWhole = false;
      canvas.dataset.points = String(this.count);
    },
    png() {
      this.draw(!this.chart);
      if (!this.chart) return;
      const link = document.createElement("a");
      link.href = this.chart.getDataURL({ type: "png", pixelRatio: 2, backgroundColor: getComputedStyle(document.body).getPropertyValue("--card").trim() });
      link.download = `${this.title.replace(/[^A-Za-z0-9]+/g, "-").toLowerCase() || "chart"}.png`;
      link.click();
    },
  },
  render() {
    const isEmpty = this.count === 0 && !this.filled && !this.full;
    return h("figure", { class: "chart" }, [
      h("figcaption", [
        h("span", { class: "chart-title" }, this.title),
        this.note ? h("span", { class: "chart-note" }, this.note) : null,
        isEmpty ? null : h("button", { class: "quiet small", type: "button", "aria-label": `Save ${this.title} as PNG`, title: "Save as PNG", onClick: () => this.png() }, "PNG"),
      ]),
      h("div", { class: "chart-body", style: { height: `${this.height}px` } }, [
        h("div", { class: "chart-canvas", ref: "canvas", role: "img", "aria-label": this.label || this.title }),
        isEmpty ? h("div", { class: ["chart-empty", this.loading && "is-loading"] }, this.loading ? "Loading" : this.empty) : null,
      ]),
    ]);
  },
};
