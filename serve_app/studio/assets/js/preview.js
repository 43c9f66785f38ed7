// One finished frame, made again whenever an option changes. The newest request wins.

import { Fault } from "./api.js";
import { $, svg } from "./dom.js";

const SETTLED_MS = 280; // since the last change of an option
const BUSY_MS = 1500;

export class Preview {
  /** `onFrame` gets the frame of the source that is shown, and the faces in it. */
  constructor(api, { onFrame, onFault }) {
    Object.assign(this, { api, onFrame, onFault });
    this.request = null;
    this.shown = null;
    $("box-on").addEventListener("change", () => this.#showBoxes());
  }

  /** Show the frame of a job's fields; nothing if they are null. */
  update(request) {
    const text = JSON.stringify(request);
    if (text === this.text) return;
    this.text = text;
    clearTimeout(this.timer);
    this.stop?.abort();
    if (request === null) return this.#clear();
    this.#wait("Making a preview …", true);
    this.timer = setTimeout(() => this.#make(request), SETTLED_MS);
  }

  /** Make no more frames. `clears`: show none either; otherwise the last one stays in the back. */
  leave(clears) {
    clearTimeout(this.timer);
    this.stop?.abort();
    this.text = undefined;
    if (clears) return this.#clear();
    this.box = null;
    this.#showBoxes();
    $("made-frame").toggleAttribute("data-stale", true);
  }

  async #make(request) {
    const stop = (this.stop = new AbortController());
    try {
      const answer = await this.api.call("POST", "v1/avatar/preview", { json: { ...request, boxes: false }, signal: stop.signal });
      const picture = await answer.blob();
      if (!stop.signal.aborted) await this.#show(picture, answer.headers, stop.signal);
    } catch (fault) {
      if (fault.name === "AbortError" || stop.signal.aborted) return;
      if (fault instanceof Fault && (fault.code === "queue_full" || fault.code === "busy")) {
        this.timer = setTimeout(() => this.#make(request), BUSY_MS);
        return;
      }
      this.#wait("There is no preview of these files.", false);
      this.onFault(fault);
    }
  }

  async #show(picture, headers, signal) {
    const before = this.shown;
    const image = $("preview-picture");
    this.shown = URL.createObjectURL(picture);
    image.src = this.shown;
    await image.decode().catch(() => {});
    if (before) URL.revokeObjectURL(before);
    if (signal.aborted) return; // an option has changed meanwhile
    image.hidden = false;
    this.box = boxOf(headers);
    this.frame = Number(headers.get("X-Source-Frame") ?? 0);
    this.#wait("", false);
    this.#showBoxes();
    this.onFrame(this.frame, facesOf(headers));
  }

  #showBoxes() {
    const image = $("preview-picture");
    const drawing = $("boxes");
    $("box-toggle").hidden = !this.box || image.hidden;
    drawing.toggleAttribute("hidden", !this.box || image.hidden || !$("box-on").checked);
    if (!this.box) return;
    drawing.setAttribute("viewBox", `0 0 ${image.naturalWidth} ${image.naturalHeight}`);
    drawing.replaceChildren(rectangle(this.box));
  }

  #wait(text, isBusy) {
    $("made-waiting").textContent = text;
    $("made-waiting").toggleAttribute("data-busy", isBusy);
    $("made-frame").toggleAttribute("data-stale", text !== "");
  }

  #clear() {
    if (this.shown) URL.revokeObjectURL(this.shown);
    this.shown = this.box = null;
    $("preview-picture").hidden = true;
    $("preview-picture").removeAttribute("src");
    $("boxes").toggleAttribute("hidden", true);
    $("box-toggle").hidden = true;
    this.#wait("", false);
  }
}

/** Draw a box, given by its corners. */
export function rectangle([x0, y0, x1, y1], attributes) {
  return svg("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, rx: 4, ...attributes });
}

/** Return the box that is redrawn, in pixels of the preview; null if it is not said. */
const boxOf = (headers) => headers.get("X-Face-Box")?.split(",").map(Number) ?? null;

/** Return the faces that can be chosen, in pixels of the source. */
function facesOf(headers) {
  const text = headers.get("X-Faces");
  return text ? text.split(";").map((box) => box.split(",").map(Number)) : [];
}
