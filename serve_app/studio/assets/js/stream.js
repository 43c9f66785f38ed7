// Plays what is finished of a job while the rest of it is drawn (HLS).

export class Stream {
  /** `onReady` is called when the first seconds are there and the video may be shown. */
  constructor(video, onReady) {
    Object.assign(this, { video, onReady });
    this.url = this.hls = null;
  }

  /** Play a stream. A job has its address as soon as something of it can be played. */
  async play(url) {
    if (this.url !== null) return;
    this.url = url;
    const { default: Hls } = await import("../vendor/hls.light.min.mjs");
    if (this.url !== url) return; // stopped meanwhile
    if (!Hls.isSupported()) {
      this.video.src = url; // Safari on older phones plays it by itself
      this.onReady();
      return;
    }
    this.hls = new Hls({
      enableWorker: false, // a worker would be made of a blob: address, which the policy forbids
      startPosition: 0,
      backBufferLength: Infinity,
    });
    this.hls.on(Hls.Events.ERROR, (_, { fatal }) => fatal && this.stop());
    this.hls.once(Hls.Events.FRAG_BUFFERED, () => this.onReady());
    this.hls.loadSource(url);
    this.hls.attachMedia(this.video);
  }

  stop() {
    this.hls?.destroy();
    this.url = this.hls = null;
  }
}
