// One of the two files: chosen, dropped, recorded or named by its address; its thumbnails; its upload.

import { el, icon, say, setIcon } from "./dom.js";
import { readAudio, readPicture, readVideo } from "./media.js";
import { LONGEST_S, Recorder, whyNot } from "./recorder.js";
import { Trim } from "./trim.js";
import { upload } from "./uploads.js";
import { bytes, clock, span } from "./words.js";

const KINDS = {
  video: {
    title: "Video or picture", what: "video", accept: "video/*,image/jpeg,image/png,image/webp",
    hint: "MP4, MOV, WebM, JPEG, PNG. A face that looks towards the camera.", address: "Address of the video or picture",
  },
  audio: {
    title: "Voice", what: "voice", accept: "audio/*,video/*",
    hint: "WAV, MP3, M4A, or a video whose sound you want.", address: "Address of the recording",
  },
};

export class Picker {
  /** `onChange` is called when the file or its address changes, `onTrim` when its part does;
   * `onFault` gets errors. */
  constructor(root, kind, { api, onChange, onTrim, onFault }) {
    Object.assign(this, { root, kind, api, onChange, onTrim, onFault, words: KINDS[kind] });
    this.canUpload = null; // not known yet
    this.picked = null;
    this.recorder = null;
    this.#drawEmpty();
  }

  /** Let files be sent, or only addresses be used. */
  setUploads(canUpload) {
    this.canUpload = canUpload;
    if (!this.picked) this.#drawEmpty();
  }

  /** The address that the worker knows the file by; null while there is none. */
  get address() {
    return this.picked?.address ?? null;
  }

  get isPicture() {
    return Boolean(this.picked?.isPicture);
  }

  /** Seconds of the part that is used; null if they are not known. */
  get seconds() {
    return this.picked?.trim?.seconds ?? this.picked?.facts?.duration ?? null;
  }

  /** The part that is used, as the options of a job. */
  part() {
    const { trim } = this.picked ?? {};
    const chosen = {};
    if (trim?.start > 0) chosen[`${this.kind}_start_s`] = round(trim.start);
    if (trim && trim.end !== null) chosen[`${this.kind}_end_s`] = round(trim.end);
    return chosen;
  }

  clear() {
    this.recorder?.end();
    this.recorder = null;
    this.picked?.stop.abort();
    if (this.picked?.file) URL.revokeObjectURL(this.picked.url);
    this.picked = null;
    this.#drawEmpty();
    this.onChange();
  }

  /** Use a file of this device. */
  async choose(file) {
    const isPicture = file.type.startsWith("image/");
    await this.#take({ file, url: URL.createObjectURL(file), name: file.name, isPicture, address: null });
  }

  /** Use a file by its address. */
  async chooseAddress(address) {
    const name = decodeURIComponent(address.split(/[?#]/)[0].split("/").pop()) || address;
    const isPicture = /\.(jpe?g|png|webp)$/i.test(name);
    const canShow = /^https?:/.test(address);
    await this.#take({ file: null, url: canShow ? address : null, name, isPicture, address });
  }

  async #take(picked) {
    this.clear();
    this.picked = { ...picked, stop: new AbortController(), facts: {}, trim: null, made: null };
    const mine = this.picked;
    this.#drawChosen();
    const reading = this.#read(mine);
    if (mine.file) await this.#send(mine);
    await reading;
    if (this.picked === mine) this.onChange();
  }

  async #read(mine) {
    if (!mine.url) return;
    try {
      const read = this.kind === "audio" ? readAudio(mine.url, mine.file, this.canvas)
        : mine.isPicture ? readPicture(mine.url, this.canvas) : readVideo(mine.url, this.canvas);
      const { facts } = await read;
      if (this.picked === mine) this.#learn(mine, facts);
    } catch {
      // The browser cannot show this file; the worker may read it all the same.
      if (this.picked === mine) this.facts.append(" · this browser cannot play it");
    }
  }

  #learn(mine, facts) {
    Object.assign(mine.facts, Object.fromEntries(Object.entries(facts).filter(([, value]) => value)));
    this.#drawFacts();
    const { duration } = mine.facts;
    if (duration && !mine.isPicture && !mine.trim && this.canTrim !== false) {
      mine.trim = new Trim(this.words.what, duration, () => this.onTrim());
      this.strip.append(mine.trim.before, mine.trim.after, mine.trim.element);
    }
    this.onChange();
  }

  async #send(mine) {
    const bar = el("progress", { max: 1, value: 0, "aria-label": `Upload of the ${this.words.what}` });
    const line = el("div", { className: "sending" }, el("span", { textContent: "Sending …" }), bar);
    this.line.after(line);
    try {
      const made = await upload(this.api, mine.file, (share) => (bar.value = share), mine.stop.signal);
      if (this.picked !== mine) return;
      mine.address = made.url;
      mine.made = made;
      this.#learn(mine, { duration: made.duration_s, width: made.width, height: made.height, fps: made.fps });
    } catch (fault) {
      if (fault.name === "AbortError") return;
      this.onFault(fault);
      if (this.picked === mine) this.clear();
    } finally {
      line.remove();
    }
  }

  // What is shown ------------------------------------------------------------------------------

  #drawEmpty() {
    const { title, hint } = this.words;
    const ways = el("div", { className: "ways" });
    if (this.canUpload) {
      ways.append(this.#fileButton());
      if (this.kind === "audio") ways.append(this.#button("mic", "Record", () => this.#record()));
    }
    if (this.canUpload !== null) ways.append(this.#addressButton(ways));
    const note = this.canUpload === false ? "This worker takes no uploads, so give the address of the file." : hint;
    this.root.replaceChildren(
      el("h2", { id: `${this.kind}-title`, textContent: title }), ways, el("p", { className: "hint", textContent: note }),
    );
  }

  #fileButton() {
    const input = el("input", { type: "file", accept: this.words.accept, id: `${this.kind}-file`, "aria-label": `Choose a file for the ${this.words.what}` });
    input.addEventListener("change", () => input.files[0] && this.choose(input.files[0]));
    return el("label", { className: "button soft file-button" }, icon(this.kind === "audio" ? "wave" : "film"), "Choose a file", input);
  }

  #button(glyph, text, act) {
    const button = el("button", { type: "button", className: "button quiet" }, icon(glyph), text);
    button.addEventListener("click", act);
    return button;
  }

  #addressButton(ways) {
    const button = this.#button("link", this.canUpload ? "" : "Use an address", () => this.#askAddress(ways));
    if (!this.canUpload) return button;
    button.className = "round edged";
    button.setAttribute("aria-label", `Use an address for the ${this.words.what}`);
    button.title = "Use an address";
    return button;
  }

  #askAddress(ways) {
    const input = el("input", { type: "url", id: `${this.kind}-address`, placeholder: "https://", autocomplete: "off", spellcheck: false });
    const use = el("button", { type: "button", className: "button", textContent: "Use" });
    const take = () => input.value.trim() && this.chooseAddress(input.value.trim());
    use.addEventListener("click", take);
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      take();
    });
    const label = el("label", { for: input.id, textContent: this.words.address });
    ways.replaceWith(el("div", { className: "address" }, el("div", { className: "field" }, label, input), use));
    input.focus();
  }

  #drawChosen() {
    const { picked, words } = this;
    const remove = el("button", { type: "button", className: "round quiet", "aria-label": `Remove the ${words.what}` }, icon("close"));
    remove.addEventListener("click", () => {
      this.clear();
      this.root.querySelector("input, button")?.focus();
    });
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.strip = el("div", { className: "strip" }, this.canvas);
    this.strip.hidden = !picked.url;
    this.facts = el("p", { className: "chosen-facts" });
    const head = el("div", { className: "step-head" }, el("h2", { id: `${this.kind}-title`, textContent: words.title }), remove);
    const name = el("p", { className: "chosen-name", textContent: picked.name, title: picked.name });
    this.line = el("div", { className: "chosen-line" }, name, this.facts);
    if (this.kind === "audio" && picked.url) remove.before(this.#listen());
    this.root.replaceChildren(head, el("div", { className: "chosen" }, this.strip, this.line));
    this.#drawFacts();
    remove.focus({ preventScroll: true });
    say(`${words.title}: ${picked.name}`);
  }

  /** A button that plays the chosen part of the voice. */
  #listen() {
    const audio = new Audio(this.picked.url);
    const { picked } = this;
    const button = el("button", { type: "button", className: "round soft", "aria-label": "Listen to the voice" }, icon("play"));
    const show = () => {
      setIcon(button, audio.paused ? "play" : "pause");
      button.setAttribute("aria-label", audio.paused ? "Listen to the voice" : "Stop the voice");
    };
    button.addEventListener("click", () => {
      if (!audio.paused) return audio.pause();
      audio.currentTime = picked.trim?.start ?? 0;
      return audio.play().catch(() => {});
    });
    audio.addEventListener("timeupdate", () => {
      if (picked.trim && picked.trim.end !== null && audio.currentTime >= picked.trim.end) audio.pause();
    });
    for (const name of ["play", "pause", "ended"]) audio.addEventListener(name, show);
    picked.stop.signal.addEventListener("abort", () => audio.pause());
    return button;
  }

  #drawFacts() {
    const { file, facts, isPicture } = this.picked;
    const known = [
      isPicture ? "picture" : null,
      facts.duration && !isPicture ? clock(facts.duration) : null,
      facts.width ? `${facts.width} × ${facts.height}` : null,
      file ? bytes(file.size) : "by its address",
    ];
    this.facts.textContent = known.filter(Boolean).join(" · ");
  }

  async #record() {
    try {
      const level = el("canvas", { className: "level", "aria-hidden": "true" });
      const time = el("span", { className: "time", textContent: "0:00" });
      const stop = el("button", { type: "button", className: "button" }, icon("stop"), "Stop");
      const draw = meter(level, (seconds) => {
        time.textContent = clock(seconds);
        if (seconds >= LONGEST_S) stop.click();
      });
      const recorder = await Recorder.begin(draw);
      this.recorder = recorder;
      stop.addEventListener("click", async () => {
        stop.disabled = true;
        this.recorder = null;
        await this.choose(await recorder.end());
      }, { once: true });
      const title = el("h2", { id: "audio-title", textContent: "Recording" });
      const note = el("p", { className: "hint", textContent: `Speak now. It ends by itself after ${span(LONGEST_S)}.` });
      this.root.replaceChildren(title, el("div", { className: "recording" }, time, level, stop), note);
      stop.focus();
      say("Recording has begun.");
    } catch (error) {
      this.onFault({ message: "There is no recording.", hint: whyNot(error), input: "audio" });
    }
  }
}

const round = (seconds) => Math.round(seconds * 1000) / 1000;

/** Draw the loudness of the last seconds. Return what is called with each new level. */
function meter(canvas, onTime) {
  const levels = [];
  return (level, seconds) => {
    onTime(seconds);
    levels.push(level);
    if (levels.length > 90) levels.shift();
    canvas.width = canvas.clientWidth;
    canvas.height = canvas.clientHeight;
    const paint = canvas.getContext("2d");
    paint.fillStyle = getComputedStyle(canvas).getPropertyValue("--accent");
    levels.forEach((each, i) => {
      const high = Math.max(2, each * canvas.height);
      paint.fillRect((i * canvas.width) / 90, (canvas.height - high) / 2, canvas.width / 90 - 1, high);
    });
  };
}
