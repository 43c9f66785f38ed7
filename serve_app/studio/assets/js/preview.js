// One finished frame, made again whenever an option changes. The newest request wins.

import { Fault } from "./api.js";
import { $, svg } from "./dom.js";

const SETTLED_MS = 280; // since the last change of an option
const BUSY_MS = 1500;

export class Preview {
  /** `onFace` gets the face that was clicked; `onFrame` the frame of the source that is shown. */
  constructor(api, { onFace, onFrame, onFault }) {
    Object.assign(this, { api, onFace, onFrame, onFault });
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
    this.boxes = null;
    this.#showBoxes();
    $("made-frame").toggleAttribute("data-stale", true);
  }

  async #make(request) {
    const stop = (this.stop = new AbortController());
    try {
      const answer = await this.api.call("POST", "v1/avatar/preview", { json: { ...request, boxes: false }, signal: stop.signal });
      const picture = await answer.blob();
      if (!stop.signal.aborted) await this.#show(picture, answer.headers);
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

  async #show(picture, headers) {
    const before = this.shown;
    const image = $("preview-picture");
    this.shown = URL.createObjectURL(picture);
    image.src = this.shown;
    await image.decode().catch(() => {});
    if (before) URL.revokeObjectURL(before);
    image.hidden = false;
    this.boxes = boxesOf(headers);
    this.frame = Number(headers.get("X-Source-Frame") ?? 0);
    this.#wait("", false);
    this.#showBoxes();
    this.onFrame(this.frame);
  }

  #showBoxes() {
    const image = $("preview-picture");
    const drawing = $("boxes");
    $("box-toggle").hidden = !this.boxes || image.hidden;
    drawing.toggleAttribute("hidden", !this.boxes || image.hidden || !$("box-on").checked);
    if (!this.boxes) return;
    drawing.setAttribute("viewBox", `0 0 ${image.naturalWidth} ${image.naturalHeight}`);
    drawing.replaceChildren(rectangle(this.boxes.drawn, {}), ...this.boxes.others.map((box, i) => this.#other(box, i)));
  }

  /** A face that is not the chosen one: a click, or Enter, chooses it. */
  #other({ box, face }, i) {
    const made = rectangle(box, { class: "other", tabindex: 0, role: "button", "aria-label": `Let face ${i + 2} speak` });
    const choose = () => this.onFace(face);
    made.addEventListener("click", choose);
    made.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose();
    });
    return made;
  }

  #wait(text, isBusy) {
    $("made-waiting").textContent = text;
    $("made-waiting").toggleAttribute("data-busy", isBusy);
    $("made-frame").toggleAttribute("data-stale", text !== "");
  }

  #clear() {
    if (this.shown) URL.revokeObjectURL(this.shown);
    this.shown = this.boxes = null;
    $("preview-picture").hidden = true;
    $("preview-picture").removeAttribute("src");
    $("boxes").toggleAttribute("hidden", true);
    $("box-toggle").hidden = true;
    this.#wait("", false);
  }
}

function rectangle([x0, y0, x1, y1], attributes) {
  return svg("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, rx: 4, ...attributes });
}

/** Return the box that is redrawn, and those of other faces, in pixels of the preview. */
function boxesOf(headers) {
  const text = headers.get("X-Face-Box");
  if (!text) return null;
  return { drawn: text.split(",").map(Number), others: [] };
}
