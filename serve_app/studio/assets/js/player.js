// Source and result side by side: one scrubber, one button, one sound.

import { $, fill, setIcon } from "./dom.js";
import { sourceAt } from "./timeline.js";
import { clock } from "./words.js";

const FAR_S = 0.12; // so far apart, the source is set right

export class Player {
  constructor() {
    this.source = $("source-video");
    this.made = $("made-video");
    this.part = { start: 0, length: null, mode: "bounce" };
    $("play").addEventListener("click", () => this.toggle());
    $("sound").addEventListener("click", () => this.#mute(!this.lead.muted));
    $("scrubber").addEventListener("input", () => this.seek(Number($("scrubber").value)));
    for (const video of [this.source, this.made]) {
      for (const name of ["play", "pause", "ended", "loadedmetadata", "durationchange", "seeked"]) {
        video.addEventListener(name, () => this.#draw());
      }
      video.addEventListener("click", () => this.toggle());
    }
    this.made.addEventListener("pause", () => this.source.pause());
    const tick = () => {
      if (!this.lead.paused) this.#follow();
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  /** The one that the scrubber moves: the result once there is one. */
  get lead() {
    return this.made.hidden ? this.source : this.made;
  }

  get hasSource() {
    return this.source.hasAttribute("src") && !this.source.hidden;
  }

  /** Show a source. `url` is null if there is none that a browser can show. */
  setSource(url, isPicture) {
    $("source-picture").hidden = !isPicture || !url;
    this.source.hidden = isPicture || !url;
    if (isPicture && url) $("source-picture").src = url;
    if (!isPicture && url && this.source.src !== url) this.source.src = url;
    if (isPicture || !url) this.#unload(this.source);
    this.#draw();
  }

  /** Say which part of the source the result shows: see `sourceAt`. */
  setPart(part) {
    this.part = part;
  }

  /** Show where a frame of the source is. */
  showSource(seconds) {
    if (this.hasSource && this.source.paused && this.made.hidden) this.source.currentTime = seconds;
  }

  /** Return where the result is and whether it plays; null if none is shown. */
  place() {
    if (this.made.hidden) return null;
    return { seconds: this.made.ended ? 0 : this.made.currentTime, plays: !this.made.paused };
  }

  /** Show a finished video at a place. */
  async setMade(url, { seconds, plays }) {
    this.made.src = url;
    this.made.hidden = false;
    this.made.muted = false;
    this.source.muted = true;
    if (seconds > 0) this.made.currentTime = seconds;
    if (plays) await this.play();
    this.#draw();
  }

  /** Let a stream be shown, which fills the video by itself. */
  showStream() {
    this.made.hidden = false;
    this.source.muted = true;
    this.seek(0);
    return this.play();
  }

  clearMade() {
    this.made.pause();
    this.made.hidden = true;
    this.#unload(this.made);
    this.#draw();
  }

  #unload(video) {
    if (!video.hasAttribute("src")) return;
    video.removeAttribute("src");
    video.load();
  }

  toggle() {
    if (this.lead.paused) return this.play();
    return this.lead.pause();
  }

  async play() {
    try {
      await this.lead.play();
    } catch (error) {
      if (error.name !== "NotAllowedError") return;
      this.#mute(true); // a page that nobody has touched may play without sound
      await this.lead.play().catch(() => {});
    }
  }

  seek(seconds) {
    if (Number.isFinite(seconds)) this.lead.currentTime = seconds;
    this.#follow(true);
  }

  #mute(isMuted) {
    this.lead.muted = isMuted;
    $("sound").setAttribute("aria-pressed", isMuted);
    setIcon($("sound"), isMuted ? "mute" : "loud");
  }

  #follow(isExact = false) {
    this.#drawTime();
    if (this.lead !== this.made || !this.hasSource) return;
    const { start, length, mode } = this.part;
    const { at, rate } = sourceAt(this.made.currentTime, length ?? this.source.duration, this.made.duration, mode);
    const far = Math.abs(this.source.currentTime - start - at);
    if (rate > 0 && !this.made.paused) {
      this.source.playbackRate = Math.min(16, Math.max(0.0625, rate * this.made.playbackRate));
      if (far > FAR_S) this.source.currentTime = start + at;
      if (this.source.paused) this.source.play().catch(() => {});
      return;
    }
    // Browsers do not play backwards, so single frames are shown then.
    this.source.pause();
    if ((isExact || far > 0.04) && !this.source.seeking) this.source.currentTime = start + at;
  }

  #draw() {
    const { lead } = this;
    const canPlay = lead.hasAttribute("src") && lead.readyState > 0;
    $("transport").hidden = !canPlay;
    const isPlaying = !lead.paused && !lead.ended;
    setIcon($("play"), isPlaying ? "pause" : "play");
    $("play").setAttribute("aria-label", isPlaying ? "Pause" : "Play");
    $("sound").hidden = lead !== this.made;
    if (lead.paused) this.#follow(true);
    this.#drawTime();
  }

  #drawTime() {
    const { lead } = this;
    const all = Number.isFinite(lead.duration) ? lead.duration : endOf(lead);
    const scrubber = $("scrubber");
    scrubber.max = all || 1;
    scrubber.value = lead.currentTime;
    scrubber.setAttribute("aria-valuetext", `${clock(lead.currentTime)} of ${clock(all)}`);
    fill(scrubber);
    $("time-now").textContent = clock(lead.currentTime);
    $("time-all").textContent = clock(all);
  }
}

/** The end of what a growing stream has. */
function endOf(video) {
  return video.seekable.length ? video.seekable.end(video.seekable.length - 1) : 0;
}
