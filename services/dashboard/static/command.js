// A command for a shell, and a button that copies it; where the browser lets no page copy, it is selected instead.
import { h } from "vue";

export default {
  props: { label: String, command: String },
  data() {
    return { told: "Copy" };
  },
  methods: {
    async copy() {
      try {
        await navigator.clipboard.writeText(this.command);
        this.told = "Copied";
      } catch { // an address without TLS, or not allowed
        getSelection().selectAllChildren(this.$refs.code);
        this.told = "Selected";
      }
      setTimeout(() => { this.told = "Copy"; }, 2000);
    },
  },
  render() {
    return h("div", { class: "command" }, [
      h("span", { class: "muted" }, this.label),
      h("code", { ref: "code" }, this.command),
      h("button", { type: "button", class: "quiet small", "aria-label": `Copy: ${this.label}`, "aria-live": "polite", onClick: this.copy }, this.told),
    ]);
  },
};
