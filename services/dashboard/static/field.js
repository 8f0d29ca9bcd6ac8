// A text field whose value is its own until it is read: typing never waits for the server.
import { h } from "vue";
import { keep, kept } from "/assets/kept.js";

export default {
  props: { label: String, value: { type: String, default: "" }, rows: { type: Number, default: 1 }, problem: String, hint: String, placeholder: String, code: Boolean, maxlength: Number, keep: String },
  emits: ["change"],
  data() {
    return { text: this.value, own: `f${Math.random().toString(36).slice(2)}` };
  },
  methods: {
    set(text) {
      this.text = text;
      this.store();
    },
    // Under the name `keep`, what was typed outlives the page in this tab, until `forget`.
    store() {
      keep(this.keep, this.text);
    },
    kept() {
      return kept(this.keep);
    },
    forget() {
      keep(this.keep, null);
      keep(this.shelfName(), null);
    },
    // Other texts that a person may want back: they outlive the page as the field's own does.
    shelve(texts) {
      keep(this.shelfName(), texts);
    },
    shelf() {
      return kept(this.shelfName());
    },
    shelfName() {
      return this.keep && `${this.keep} shelf`;
    },
    // Puts the cursor at a line, counted from 1, and marks it.
    go(line) {
      const box = this.$refs.box;
      const lines = this.text.split("\n");
      const start = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
      box.focus();
      box.setSelectionRange(start, start + (lines[line - 1] || "").length);
      box.scrollTop = Math.max(0, (line - 6) * parseFloat(getComputedStyle(box).lineHeight));
    },
  },
  render() {
    const shared = {
      id: this.own, ref: "box", value: this.text, placeholder: this.placeholder, maxlength: this.maxlength, spellcheck: "false", autocomplete: "off",
      "aria-invalid": this.problem ? "true" : undefined, "aria-describedby": this.problem || this.hint ? `${this.own}-note` : undefined,
      onInput: (event) => { this.set(event.target.value); },
      onChange: (event) => this.$emit("change", event.target.value),
    };
    return h("div", { class: ["field", this.code && "field-code", this.problem && "field-bad"] }, [
      h("label", { for: this.own }, this.label),
      this.rows > 1 ? h("textarea", { ...shared, rows: this.rows }) : h("input", { ...shared, type: "text" }),
      this.problem || this.hint ? h("p", { id: `${this.own}-note`, class: this.problem ? "problem" : "hint" }, this.problem || this.hint) : null,
    ]);
  },
};
