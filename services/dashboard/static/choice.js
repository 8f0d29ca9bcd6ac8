// A select of the browser's own: it works with a keyboard and a screen reader as people know it.
import { h } from "vue";

export default {
  props: { label: String, options: Array, value: { type: [String, Number], default: "" }, hidden: Boolean },
  emits: ["choose"],
  data() {
    return { own: this.value }; // what was chosen stays, however often the page around it is drawn
  },
  watch: {
    value(value) { this.own = value; },
    options() { this.own = this.value; },
  },
  render() {
    return h("label", { class: "choice" }, [
      h("span", { class: this.hidden ? "unseen" : "choice-label" }, this.label),
      h("select", { value: this.own, onChange: (event) => { this.own = event.target.value; this.$emit("choose", this.own); } }, (this.options || []).map((option) => h("option", { value: option.value, selected: option.value === this.own }, option.text))),
    ]);
  },
};
