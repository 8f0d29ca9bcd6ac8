// A time in the viewer's zone; the whole of it, with the zone, on hovering.
import { h } from "vue";
import { moment, wholeMoment } from "/assets/format.js";

export default {
  props: { at: Number },
  render() {
    return h("time", { title: wholeMoment(this.at), datetime: this.at ? new Date(this.at * 1000).toISOString() : undefined }, moment(this.at));
  },
};
