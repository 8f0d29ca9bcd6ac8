// A file of prompts, sent to the API as it is: it never goes through the page's connection.
import { h } from "vue";

const FORMATS = ["jsonl", "csv", "parquet"];

export default {
  emits: ["uploaded"],
  data() {
    return { file: null, prompt: "prompt", answer: "answer", problem: "", sending: false, own: `u${Math.random().toString(36).slice(2)}` };
  },
  methods: {
    async send() {
      const format = this.file ? this.file.name.split(".").pop().toLowerCase() : "";
      this.problem = FORMATS.includes(format) ? "" : "choose a .jsonl, .csv or .parquet file";
      if (this.problem) return;
      const asked = new URLSearchParams({ name: this.file.name.slice(0, 128), format, prompt: this.prompt, answer: this.answer });
      this.sending = true;
      try {
        const answer = await fetch(`/datasets?${asked}`, { method: "POST", body: this.file, headers: { "content-type": "application/octet-stream" } });
        const told = await answer.json().catch(() => ({}));
        if (answer.ok) this.$emit("uploaded", { id: told.id, rows: told.rows });
        else if (answer.status === 401) this.problem = "you are signed out: sign in again in another tab, then press this once more";
        else this.problem = told.error ? told.error.message : `the server did not take it (${answer.status})`;
      } catch {
        this.problem = "the server is away, or the file has changed since it was chosen; try again";
      } finally {
        this.sending = false;
      }
    },
    box(label, name) {
      return h("div", { class: "field" }, [
        h("label", { for: `${this.own}-${name}` }, label),
        h("input", { id: `${this.own}-${name}`, type: "text", value: this[name], maxlength: 256, spellcheck: "false", autocomplete: "off", onInput: (event) => { this[name] = event.target.value; } }),
      ]);
    },
  },
  render() {
    return h("div", { class: "stack" }, [
      h("div", { class: ["field", this.problem && "field-bad"] }, [
        h("label", { for: `${this.own}-file` }, "File (.jsonl, .csv, .parquet)"),
        h("input", { id: `${this.own}-file`, type: "file", accept: FORMATS.map((one) => `.${one}`).join(","), "aria-invalid": this.problem ? "true" : undefined, "aria-describedby": `${this.own}-note`, onChange: (event) => { this.file = event.target.files[0] || null; } }),
        h("p", { id: `${this.own}-note`, class: "problem", role: "alert" }, this.problem),
      ]),
      this.box("Column of prompts", "prompt"),
      this.box("Column of answers (empty: none)", "answer"),
      h("div", [h("button", { type: "button", disabled: this.sending, onClick: this.send }, this.sending ? "Uploading" : "Upload")]),
    ]);
  },
};
