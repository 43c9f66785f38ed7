// The studio: puts the parts of the page together.

import { Api, Fault } from "./api.js";
import { Drop } from "./drop.js";
import { $, prose } from "./dom.js";
import { Faces } from "./faces.js";
import { Estimate } from "./estimate.js";
import { JobView, isOver } from "./jobview.js";
import { Keys } from "./keys.js";
import { Options } from "./options.js";
import { Picker } from "./picker.js";
import { Player } from "./player.js";
import { Preview } from "./preview.js";
import { Recent } from "./recent.js";
import { Stream } from "./stream.js";
import { Worker } from "./worker.js";
import { curlOf } from "./curl.js";

class Studio {
  constructor() {
    this.api = new Api(new Keys(() => this.begin()));
    this.features = null;
    this.player = new Player();
    this.worker = new Worker(this.api);
    this.estimate = new Estimate(this.api);
    const [changed, failed] = [() => this.changed(), (fault) => this.fail(fault)];
    const parts = { api: this.api, onChange: changed, onTrim: () => this.tuned(), onFault: failed };
    this.video = new Picker($("video-step"), "video", parts);
    this.audio = new Picker($("audio-step"), "audio", parts);
    this.options = new Options(() => this.tuned());
    this.preview = new Preview(this.api, {
      onFrame: (frame, faces) => this.showFrame(frame, faces),
      onFault: failed,
    });
    this.faces = new Faces((face) => this.options.chooseFace(face));
    this.stream = new Stream($("made-video"), () => this.playStream());
    this.jobView = new JobView(this.api, {
      onChange: (job, before) => this.followed(job, before),
      onFault: failed,
      onAgain: (job) => this.retry(job),
    });
    this.recent = new Recent(this.api, { onOpen: (job) => this.open(job), onFault: failed, onRetried: (job) => this.open(job) });
    new Drop(document, { onVideo: (file) => this.video.choose(file), onAudio: (file) => this.audio.choose(file), hasVideo: () => Boolean(this.video.picked) });
    $("panel").addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    $("edit").addEventListener("click", () => this.tuned());
    $("fault-close").addEventListener("click", () => ($("fault").hidden = true));
    this.sources = new Map(); // what this tab knows of its jobs
  }

  async begin() {
    this.worker.refresh();
    this.changed();
    try {
      this.features = await this.api.features();
    } catch (fault) {
      this.fail(fault);
      if (fault.retryable) setTimeout(() => this.begin(), 4000);
      return;
    }
    $("fault").hidden = true;
    const canTrim = this.features.has("video_start_s");
    Object.assign(this.video, { canTrim });
    Object.assign(this.audio, { canTrim });
    this.video.setUploads(this.features.uploads);
    this.audio.setUploads(this.features.uploads);
    this.options.offer(this.features);
    this.changed();
    this.recent.refresh();
    const [, id] = location.hash.match(/^#job=(.+)$/) ?? [];
    if (id) this.openById(decodeURIComponent(id));
  }

  /** The fields of a job as the panel has them; null while a file is missing. */
  request() {
    const [video, audio] = [this.video.address, this.audio.address];
    if (!this.features || !video || !audio) return null;
    const fields = this.options.fields();
    Object.assign(fields.params, this.video.part(), this.audio.part());
    return { video_url: video, audio_url: audio, ...fields };
  }

  /** Something in the panel has changed. */
  changed() {
    if (!this.recent) return; // the parts are still being made
    const { picked } = this.video;
    if (picked !== this.shownVideo || this.audio.picked !== this.shownAudio) this.showFiles();
    const request = this.request();
    if (this.isEditing) {
      this.preview.update(request);
      if (!request) $("made-waiting").textContent = this.missing(false);
    }
    if (this.features?.estimate) this.estimate.update(request);
    $("look").hidden = !this.isEditing || request === null;
    $("edit").hidden = !this.video.picked;
    $("start-bar").hidden = !this.isEditing && !$("job").hidden;
    $("start").disabled = request === null;
    $("start-hint").textContent = request ? "" : this.missing(true);
  }

  /** What is still needed before a video can be made. */
  missing(isForStart) {
    if (!this.features) return "";
    if (!this.video.picked) return isForStart ? "Add a video or a picture first." : "";
    if (!this.audio.picked) return isForStart ? "Add a voice next." : "Add a voice, and a finished frame appears here.";
    return "The files are being sent …";
  }

  /** The panel has other files than before. */
  showFiles() {
    const { picked } = this.video;
    const isOther = picked !== this.shownVideo;
    [this.shownVideo, this.shownAudio] = [picked, this.audio.picked];
    if (isOther) {
      this.options.forgetFace();
      this.faces.clear();
    }
    if (picked || this.isEditing) this.edit();
  }

  /** An option has changed: the stage shows what it does, and a job goes on by itself. */
  tuned() {
    if (!this.isEditing && this.video.picked) this.edit();
    this.changed();
  }

  /** Show the files of the panel and their preview, instead of a job. */
  edit() {
    const { picked } = this.video;
    this.isEditing = true;
    this.stream.stop();
    this.jobView.leave();
    this.player.clearMade();
    this.player.setSource(picked?.url ?? null, this.video.isPicture);
    history.replaceState(null, "", location.pathname + location.search);
    this.setStage(Boolean(picked), "Preview");
    this.preview.text = undefined;
  }

  setStage(isFilled, name) {
    $("screen").dataset.state = isFilled ? "filled" : "empty";
    $("hello").classList.toggle("unseen", isFilled);
    $("invitation").hidden = isFilled;
    $("source-pane").hidden = !isFilled || !($("source-video").hasAttribute("src") || $("source-picture").hasAttribute("src"));
    $("made-pane").hidden = !isFilled;
    $("made-name").textContent = name;
  }

  /** Show the frame of the source that the preview was made of, and the faces in it. */
  showFrame(frame, faces) {
    const { facts } = this.video.picked;
    const size = facts.width ? facts : null;
    const seconds = this.video.isPicture ? null : facts.fps ? frame / facts.fps : 0;
    if (facts.fps && !this.video.isPicture) this.player.showSource(seconds);
    this.faces.offer(this.features.has("face") ? faces : [], frame, size, seconds);
  }

  // A job ------------------------------------------------------------------------------------

  async start() {
    const request = this.request();
    if (request === null) return;
    $("start").disabled = true;
    $("fault").hidden = true;
    const metadata = { video: this.video.picked.name, voice: this.audio.picked.name };
    try {
      const headers = { "Idempotency-Key": newKey() };
      const job = await this.api.json("POST", "v1/avatar/jobs", { json: { ...request, metadata }, headers });
      this.sources.set(job.id, this.sourceOf(request));
      this.open(job);
    } catch (fault) {
      this.fail(fault);
      this.changed();
    }
  }

  /** What a job was made from, for the comparison and for curl. */
  sourceOf(request) {
    const [video, audio] = [this.video.picked, this.audio.picked];
    const files = {};
    if (video.file) files.video_url = video.name;
    if (audio.file) files.audio_url = audio.name;
    const part = { start: video.trim?.start ?? 0, length: this.video.seconds, mode: this.options.syncMode };
    const shown = video.file ? URL.createObjectURL(video.file) : video.url;
    return { url: shown, isPicture: video.isPicture, part, request, files };
  }

  async openById(id) {
    try {
      this.open(await this.api.json("GET", `v1/avatar/jobs/${encodeURIComponent(id)}`));
    } catch (fault) {
      this.fail(fault);
    }
  }

  /** Show a job, whether it runs or has ended. */
  open(job) {
    this.isEditing = false;
    this.faces.clear();
    this.stream.stop();
    this.player.clearMade();
    $("fault").hidden = true;
    const known = this.sources.get(job.id) ?? this.elsewhere(job);
    this.preview.leave(isOver(job) || !this.sources.has(job.id));
    this.player.setSource(known.url, known.isPicture);
    this.player.setPart(known.part);
    this.setStage(true, "Result");
    history.replaceState(null, "", `#job=${encodeURIComponent(job.id)}`);
    this.recent.refresh();
    this.worker.refresh();
    if ($("stage").getBoundingClientRect().top < 0) $("stage").scrollIntoView({ block: "start" });
    const curl = curlOf(this.api.base.href, known.request, known.files, Boolean(this.api.keys.key));
    this.jobView.show(job, curl);
    this.changed();
  }

  /** What is known of a job of another tab: its addresses, without their signatures. */
  elsewhere(job) {
    const { video_url: url, audio_url, aspect_ratio, resolution, params } = job.input;
    const request = JSON.parse(JSON.stringify({ video_url: url, audio_url, aspect_ratio: aspect_ratio ?? undefined, resolution: resolution ?? undefined, params }));
    const canShow = /^https?:/.test(url);
    const part = { start: params.video_start_s ?? 0, length: null, mode: params.sync_mode ?? "bounce" };
    return { url: canShow ? url : null, isPicture: false, part, request, files: {} };
  }

  /** A job has changed. */
  followed(job, before) {
    if (job.status === "running" && job.stream_url) this.stream.play(job.stream_url);
    if (job.status === "queued" || job.status === "running") {
      $("made-waiting").textContent = $("made-video").hidden ? "The first seconds play here while the rest is drawn." : "";
    }
    if (before && before !== job.status) this.worker.refresh();
    if (!isOver(job)) return;
    // A video that somebody has waited for begins by itself. Its stream loses its place as it ends.
    const place = this.player.place() ?? { seconds: 0, plays: Boolean(before) };
    this.stream.stop();
    this.preview.leave(true);
    if (job.status !== "succeeded") $("made-waiting").textContent = "There is no result.";
    if (job.status === "succeeded") this.player.setMade(job.output_url, place);
    else this.player.clearMade();
    if (job.status === "failed") this.fail({ message: job.error, hint: job.failure.hint, input: job.failure.input });
    if (before && before !== job.status) this.recent.refresh();
  }

  playStream() {
    $("made-waiting").textContent = "";
    this.player.showStream();
  }

  async retry(job) {
    try {
      const path = `v1/avatar/jobs/${encodeURIComponent(job.id)}/retry`;
      this.open(await this.api.json("POST", path));
    } catch (fault) {
      this.fail(fault);
    }
  }

  /** Show an error: what is wrong, and what to do. */
  fail(fault) {
    if (fault instanceof Fault || fault.hint) {
      $("fault-what").replaceChildren(...prose(fault.message));
      $("fault-do").replaceChildren(...prose(fault.hint));
    } else {
      console.error(fault);
      $("fault-what").textContent = "Something in this page went wrong.";
      $("fault-do").textContent = "Load the page again. The videos of the worker are not affected.";
    }
    $("fault").hidden = false;
  }
}

const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

new Studio().begin();
