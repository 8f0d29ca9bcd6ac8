// Weights on the simplex: moving one takes from, or gives to, those that aren't locked, in their present proportion.
import { h } from "vue";
import { colour, percent } from "/assets/format.js";
import { keep, kept } from "/assets/kept.js";

const round = (value) => Math.round(value * 1e4) / 1e4;

// The weights after `name` is set to `wanted`; the locked ones stay as they are.
export function moved(weights, locked, name, wanted) {
  const free = Object.keys(weights).filter((other) => other !== name && !locked[other]);
  const pinned = Object.keys(weights).filter((other) => other !== name && locked[other]);
  const room = Math.max(0, 1 - pinned.reduce((sum, other) => sum + weights[other], 0));
  const value = free.length ? Math.min(Math.max(0, wanted), room) : room;
  const rest = room - value;
  const total = free.reduce((sum, other) => sum + weights[other], 0);
  const result = { ...weights, [name]: value };
  for (const other of free) result[other] = total > 1e-9 ? (rest * weights[other]) / total : rest / free.length;
  return result;
}

export default {
  props: { names: Array, weights: Object, bounds: Object, applied: Object, strategy: Object, disabled: Boolean, dims: Boolean, seen: { type: Number, default: 0 }, keep: String },
  emits: ["edit"],
  data() {
    return { now: { ...this.weights }, limits: copy(this.bounds), locked: {}, typed: {}, edits: this.seen };
  },
  methods: {
    // The server's word, unless it was said before the server knew of the newest edit, of which `seen` is the count.
    set(weights, bounds, seen) {
      if (seen < this.edits) return;
      this.edits = seen;
      clearTimeout(this.timer);
      this.timer = null;
      this.isLate = false;
      this.now = { ...weights };
      this.limits = copy(bounds);
    },
    // Under the name `keep`, what the server makes of an edit outlives the page in this tab.
    store(edit) {
      keep(this.keep, edit);
    },
    kept() {
      return kept(this.keep);
    },
    // A drag is told of every 150 ms. `flush` comes when it ends or the focus leaves, which is before any click elsewhere:
    // nobody applies less than is shown.
    drag() {
      if (this.timer) {
        this.isLate = true;
        return;
      }
      this.tell();
      this.timer = setTimeout(() => { this.timer = null; this.flush(); }, 150);
    },
    flush() {
      if (!this.isLate) return;
      this.tell();
    },
    tell() {
      this.isLate = false;
      this.$emit("edit", {
        weights: Object.fromEntries(this.names.map((name) => [name, round(this.now[name])])),
        bounds: copy(this.limits),
        edits: this.edits,
      });
    },
    move(name, value) {
      this.edits += 1;
      this.now = moved(this.now, this.locked, name, value);
      this.drag();
    },
    // What is being typed is the box's own until it is left: the page is drawn anew with every step.
    type(box, text) {
      this.typed = { ...this.typed, [box]: text };
    },
    leave(box) {
      const { [box]: _, ...others } = this.typed;
      this.typed = others;
    },
    limit(name, end, text) {
      const value = Number(text);
      if (text === "" || !Number.isFinite(value)) return;
      this.edits += 1;
      this.limits = { ...this.limits, [name]: this.limits[name].map((old, i) => (i === end ? Math.min(1, Math.max(0, value / 100)) : old)) };
      this.tell();
    },
    bound(name, kind, share, end) {
      const box = `${kind} of ${name}`;
      return h("input", {
        type: "number", min: 0, max: 100, step: 1, value: this.typed[box] ?? Math.round(share * 1000) / 10, "aria-label": `${box} in percent`,
        onInput: (event) => this.type(box, event.target.value),
        onChange: (event) => this.limit(name, end, event.target.value),
        onBlur: () => this.leave(box),  // which comes after a change, and also without one
      });
    },
    row(name, i) {
      const isLocked = Boolean(this.locked[name]);
      const value = this.now[name];
      const tick = (kind, share) => (typeof share === "number" ? h("span", { class: ["tick", `tick-${kind}`], style: { left: `calc(9px + ${share} * (100% - 18px))` }, title: `${kind}: ${percent(share)}` }) : null);
      const [floor, ceiling] = this.limits[name];
      return h("fieldset", { class: "weight", key: name, disabled: this.disabled }, [
        h("legend", { class: "weight-name" }, [h("span", { class: "swatch", style: { background: colour(i) } }), name]),
        h("div", { class: "weight-line" }, [
          h("div", { class: "slider" }, [
            h("input", {
              type: "range", min: 0, max: 1, step: 0.005, value, disabled: this.disabled || isLocked,
              "aria-label": `Weight of ${name}`, "aria-valuetext": percent(value), style: { "--hue": colour(i), "--share": `calc(9px + ${value} * (100% - 18px))` },
              onInput: (event) => this.move(name, Number(event.target.value)),
              onChange: () => this.flush(),
            }),
            tick("applied", this.applied?.[name]),
            tick("learner", this.strategy?.[name]),
          ]),
          h("output", { class: "weight-value" }, percent(value)),
          h("button", {
            type: "button", class: ["quiet", "small", "lock"], "aria-pressed": String(isLocked), "aria-label": `Lock ${name}`, title: isLocked ? "Unlock" : "Lock at this weight",
            onClick: () => { this.locked = { ...this.locked, [name]: !isLocked }; },
          }, isLocked ? "Locked" : "Lock"),
        ]),
        h("div", { class: "weight-bounds" }, [["floor", floor, 0], ["ceiling", ceiling, 1]].map(([kind, share, end]) =>
          h("label", [kind, this.bound(name, kind, share, end), "%"]))),
      ]);
    },
  },
  render() {
    return h("div", { class: ["simplex", this.dims && "simplex-dim"], onFocusout: () => this.flush() }, this.names.map((name, i) => this.row(name, i)));
  },
};

function copy(bounds) {
  return Object.fromEntries(Object.entries(bounds || {}).map(([name, pair]) => [name, [...pair]]));
}
