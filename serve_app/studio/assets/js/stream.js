// Plays what is finished of a job while the rest of it is drawn (HLS).

const PLAYLIST = /#EXTINF/;

export class Stream {
  /** `onReady` is called when the first piece is there and the video may be shown. */
  constructor(video, onReady) {
    Object.assign(this, { video, onReady });
    this.hls = null;
    this.isLooking = this.isOn = false;
  }

  /** Begin to play if a first piece is there. Call it at each change of the job. */
  async look(url) {
    if (this.isLooking || this.isOn) return;
    this.isLooking = true;
    try {
      const answer = await fetch(url);
      if (answer.ok && this.isLooking && PLAYLIST.test(await answer.text())) await this.#attach(url);
    } catch {
      // The connection was lost; the next change tries again.
    } finally {
      this.isLooking = false;
    }
  }

  async #attach(url) {
    const { default: Hls } = await import("../vendor/hls.light.min.mjs");
    if (!this.isLooking) return;
    this.isOn = true;
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
    this.isLooking = this.isOn = false;
    this.hls?.destroy();
    this.hls = null;
  }
}
