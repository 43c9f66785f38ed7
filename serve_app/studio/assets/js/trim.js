// Two handles over a strip: where the part that is used begins, and where it ends.

import { el } from "./dom.js";
import { span } from "./words.js";

const LEAST_S = 0.2;

export class Trim {
  /** `what` completes the names of the handles: "video" or "voice". */
  constructor(what, duration, onChange) {
    this.duration = duration;
    this.onChange = onChange;
    this.from = this.#handle(`Start of the ${what}`, 0);
    this.to = this.#handle(`End of the ${what}`, duration);
    this.between = el("span", { className: "between" });
    this.element = el("div", { className: "trim" }, this.between, this.from, this.to);
    this.before = el("span", { className: "shade" });
    this.after = el("span", { className: "shade" });
    this.#draw();
  }

  get start() {
    return Number(this.from.value);
  }

  /** The end in seconds; null if it is the end of the file. */
  get end() {
    return Number(this.to.value) >= this.duration - 0.01 ? null : Number(this.to.value);
  }

  get seconds() {
    return Number(this.to.value) - this.start;
  }

  #handle(name, value) {
    const step = this.duration > 60 ? 0.5 : 0.1;
    const range = el("input", { type: "range", min: 0, max: this.duration, step: "any", "aria-label": name });
    range.value = value;
    // "any" keeps the exact end; the arrow keys move by a step all the same.
    range.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
      if (!way) return;
      event.preventDefault();
      range.value = Number(range.value) + way * step;
      this.#moved(range);
      this.onChange();
    });
    range.addEventListener("input", () => this.#moved(range));
    range.addEventListener("change", () => this.onChange());
    return range;
  }

  #moved(range) {
    const least = Math.min(LEAST_S, this.duration);
    if (range === this.from) range.value = Math.min(this.start, Number(this.to.value) - least);
    else range.value = Math.max(Number(range.value), this.start + least);
    this.#draw();
  }

  #draw() {
    const share = (seconds) => (this.duration ? (seconds / this.duration) * 100 : 0);
    const [from, to] = [share(this.start), share(Number(this.to.value))];
    Object.assign(this.between.style, { left: `${from}%`, right: `${100 - to}%` });
    Object.assign(this.before.style, { left: 0, width: `${from}%` });
    Object.assign(this.after.style, { right: 0, width: `${100 - to}%` });
    for (const range of [this.from, this.to]) range.setAttribute("aria-valuetext", span(Number(range.value)));
  }
}
