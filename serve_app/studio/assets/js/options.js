// What the panel's fields say, as the fields of a job. Only what differs from the worker's own
// choice is sent, so that a deployment's defaults stay in force.

import { $, fill } from "./dom.js";

const SLIDERS = {
  margin: { params: ["extra_margin"], usual: 10, value: Number, text: (n) => `${n} px` },
  cheeks: { params: ["left_cheek_width", "right_cheek_width"], usual: 90, value: Number, text: (n) => `${n}` },
  blur: { params: ["blur"], usual: 5, value: (n) => n / 100, text: (n) => `${n} %` },
};
const CRF = { small: 26, best: 14 };
const SYNC = {
  bounce: "Play the video back and forth",
  loop: "Begin the video again",
  cut_off: "End with the shorter one",
  silence: "End with the longer one",
  remap: "Stretch the video to the voice",
};

export class Options {
  constructor(onChange) {
    this.onChange = onChange;
    this.chosenFace = null;
    for (const [id, slider] of Object.entries(SLIDERS)) {
      $(id).addEventListener("input", () => {
        this.#show(id, slider);
        onChange();
      });
      this.#show(id, slider);
    }
    for (const input of document.querySelectorAll("[name=aspect]")) input.addEventListener("change", () => this.#reshaped());
    for (const id of ["fit", "size", "quality", "rest", "sync"]) $(id).addEventListener("change", onChange);
    $("face").addEventListener("change", onChange);
    $("reset").addEventListener("click", () => this.reset());
  }

  /** Offer what this worker can do. */
  offer(features) {
    const words = features.words("sync_mode").filter((word) => word in SYNC);
    $("sync").replaceChildren(...words.map((word) => new Option(SYNC[word], word)));
    $("sync-field").hidden = words.length === 0;
    $("face-field").hidden = !features.has("face");
    for (const [id, slider] of Object.entries(SLIDERS)) {
      $(id).closest(".slider").hidden = !slider.params.every((name) => features.has(name));
    }
  }

  /** Follow the face at a place of the source. `face`: as the option of the same name. */
  chooseFace(face) {
    this.chosenFace = face;
    const option = $("face").querySelector("[value=chosen]");
    option.hidden = face === null;
    $("face").value = face === null ? "largest" : "chosen";
    this.onChange();
  }

  /** Forget what belongs to the video that was there. */
  forgetFace() {
    if (this.chosenFace !== null) this.chooseFace(null);
  }

  /** How the video goes on where the voice is longer. */
  get syncMode() {
    return $("sync").value || "bounce";
  }

  reset() {
    for (const [id, slider] of Object.entries(SLIDERS)) {
      $(id).value = slider.usual;
      this.#show(id, slider);
    }
    $("margin").focus();
    this.onChange();
  }

  /** Return the fields of a job that the panel decides. */
  fields() {
    const aspect = document.querySelector("[name=aspect]:checked").value;
    const params = {};
    for (const [id, slider] of Object.entries(SLIDERS)) {
      const given = Number($(id).value);
      if (given !== slider.usual) for (const name of slider.params) params[name] = slider.value(given);
    }
    if (aspect !== "source") params.fit = $("fit").value;
    if ($("quality").value in CRF) params.crf = CRF[$("quality").value];
    if ($("rest").checked) params.rest_in_silence = true;
    if ($("sync").value && $("sync").value !== "bounce") params.sync_mode = $("sync").value;
    if ($("face").value === "all") params.face = "all";
    if ($("face").value === "chosen" && this.chosenFace) params.face = this.chosenFace;
    const fields = { params };
    if (aspect !== "source") fields.aspect_ratio = aspect;
    if ($("size").value !== "source") fields.resolution = $("size").value;
    return fields;
  }

  #reshaped() {
    $("fit-field").hidden = document.querySelector("[name=aspect]:checked").value === "source";
    this.onChange();
  }

  #show(id, slider) {
    const range = $(id);
    const text = slider.text(Number(range.value));
    $(`${id}-out`).value = text;
    range.setAttribute("aria-valuetext", text);
    fill(range);
    const isUsual = ([name, each]) => Number($(name).value) === each.usual;
    $("reset").hidden = Object.entries(SLIDERS).every(isUsual);
  }
}
