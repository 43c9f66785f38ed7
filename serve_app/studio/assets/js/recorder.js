// Records speech with the microphone of this device.

const KINDS = ["audio/webm;codecs=opus", "audio/mp4", "audio/ogg;codecs=opus"];
export const LONGEST_S = 600;

export class Recorder {
  /** Begin to record. `onLevel` gets how loud it is, 0 to 1, and the seconds so far.
   *
   * Throws what the browser says if it may not, or there is no microphone. */
  static async begin(onLevel) {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    return new Recorder(stream, onLevel);
  }

  constructor(stream, onLevel) {
    this.stream = stream;
    const mimeType = KINDS.find((kind) => MediaRecorder.isTypeSupported(kind));
    this.recorder = new MediaRecorder(stream, mimeType ? { mimeType } : {});
    this.parts = [];
    this.recorder.addEventListener("dataavailable", ({ data }) => this.parts.push(data));
    this.done = new Promise((resolve) => this.recorder.addEventListener("stop", resolve));
    this.recorder.start(1000);
    this.began = performance.now();
    this.#watch(onLevel);
  }

  #watch(onLevel) {
    this.context = new AudioContext();
    const analyser = this.context.createAnalyser();
    analyser.fftSize = 512;
    this.context.createMediaStreamSource(this.stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const look = () => {
      if (this.recorder.state !== "recording") return;
      analyser.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
      const seconds = (performance.now() - this.began) / 1000;
      onLevel(Math.min(1, Math.sqrt(power) * 4), seconds);
      requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  }

  /** End the recording. Return it as a file. */
  async end() {
    if (this.recorder.state !== "inactive") this.recorder.stop();
    await this.done;
    this.stream.getTracks().forEach((track) => track.stop());
    await this.context.close();
    const type = this.recorder.mimeType.split(";")[0];
    const suffix = { "audio/mp4": "m4a", "audio/ogg": "ogg" }[type] ?? "webm";
    return new File(this.parts, `recording.${suffix}`, { type });
  }
}

/** Why there is no recording, in a sentence that says what to do. */
export function whyNot(error) {
  if (!navigator.mediaDevices) {
    return "Browsers record only on https pages and on this machine itself. Choose a file instead.";
  }
  if (error.name === "NotAllowedError") {
    return "The browser may not use the microphone. Allow it beside the address of this page, then try again.";
  }
  return "No microphone was found. Connect one, or choose a file instead.";
}
