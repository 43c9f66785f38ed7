// What a video will take, before it is made.

import { $, el } from "./dom.js";
import { dollars, span } from "./words.js";

const SETTLED_MS = 600;

export class Estimate {
  constructor(api) {
    this.api = api;
  }

  /** Show the estimate of a job's fields; nothing if they are null. */
  update(request) {
    const text = JSON.stringify(request);
    if (text === this.text) return;
    this.text = text;
    clearTimeout(this.timer);
    this.stop?.abort();
    if (request === null) $("estimate").replaceChildren();
    else this.timer = setTimeout(() => this.#make(request), SETTLED_MS);
  }

  async #make(request) {
    const stop = (this.stop = new AbortController());
    try {
      this.#draw(await this.api.json("POST", "v1/estimate", { json: request, signal: stop.signal, asks: false }));
    } catch {
      // The video can be made without an estimate; the preview says what is wrong with a file.
      if (!stop.signal.aborted) $("estimate").replaceChildren();
    }
  }

  #draw(made) {
    // Before the first video there is only the configured speed, which is a rough guess.
    const isKnown = made.basis.speeds !== "configuration";
    const seconds = `about ${span(Math.max(1, Math.round(made.seconds + made.queue_s)))}`;
    const parts = [
      [span(made.duration_s), "of video"],
      isKnown ? [seconds, made.queue_s >= 1 ? "with the queue" : "to make"] : ["", "The time is known after the first video."],
      isKnown && made.usd !== null ? [dollars(made.usd), ""] : null,
    ];
    $("estimate").replaceChildren(...parts.filter(Boolean).map(([bold, rest]) =>
      el("span", {}, el("b", { textContent: bold }), rest ? ` ${rest}` : "")));
  }
}
