// The faces of the source frame that the preview shows: a click, or Enter, chooses who speaks.

import { $ } from "./dom.js";
import { rectangle } from "./preview.js";

const NEAR_S = 0.06;

export class Faces {
  /** `onChoose` gets the face, as the option of that name. */
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.at = null;
    for (const name of ["play", "pause", "seeked"]) $("source-video").addEventListener(name, () => this.#draw());
  }

  /** Offer faces of a frame. `boxes`: x0, y0, x1, y1 in pixels of the source. `size`: of it;
   * `seconds`: when the frame is shown, null for a picture. */
  offer(boxes, frame, size, seconds) {
    this.at = boxes.length > 1 && size ? { boxes, frame, size, seconds } : null;
    $("face-hint").hidden = this.at === null;
    this.#draw();
  }

  clear() {
    this.offer([], 0, null, null);
  }

  #draw() {
    const { at } = this;
    const video = $("source-video");
    const isThere = at !== null && (at.seconds === null || (video.paused && Math.abs(video.currentTime - at.seconds) < NEAR_S));
    $("faces").toggleAttribute("hidden", !isThere);
    if (!isThere || this.drawn === at) return;
    this.drawn = at;
    $("faces").setAttribute("viewBox", `0 0 ${at.size.width} ${at.size.height}`);
    $("faces").replaceChildren(...at.boxes.map((box, i) => this.#face(box, i)));
  }

  #face(box, i) {
    const [x0, y0, x1, y1] = box;
    const made = rectangle(box, { class: "other", tabindex: 0, role: "button", "aria-label": `Let face ${i + 1} speak` });
    const choose = () => this.onChoose({ box: [x0, y0, x1 - x0, y1 - y0], frame: this.at.frame });
    made.addEventListener("click", choose);
    made.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose();
    });
    return made;
  }
}
