// A select of the browser's own: it works with a keyboard and a screen reader as people know it.
import { h } from "vue";

export default {
  props: { label: String, options: Array, value: { type: [String, Number], default: "" }, hidden: Boolean },
  emits: ["choose"],
  render() {
    return h("label", { class: "choice" }, [
      h("span", { class: this.hidden ? "unseen" : "choice-label" }, this.label),
      h("select", { value: this.value, onChange: (event) => this.$emit("choose", event.target.value) }, (this.options || []).map((option) => h("option", { value: option.value, selected: option.value === this.value }, option.text))),
    ]);
  },
};
