// What the browser itself finds out about a file: its length, thumbnails, the loudness of its sound.

const THUMBNAILS = 7;
// Larger sounds are not decoded in the browser, because all of it would be in memory at once.
const MOST_DECODED_BYTES = 60e6;

/** Resolve at an event of an element; reject at its error, and after `ms`. */
export function once(element, name, ms = 15_000) {
  return new Promise((resolve, reject) => {
    const end = new AbortController();
    const settle = (act, value) => {
      clearTimeout(timer);
      end.abort();
      act(value);
    };
    const timer = setTimeout(() => settle(reject, new Error(`no ${name}`)), ms);
    element.addEventListener(name, () => settle(resolve), { signal: end.signal });
    element.addEventListener("error", () => settle(reject, new Error("unreadable")), { signal: end.signal });
  });
}

/** Return duration and size of a video, and draw its thumbnails as they are decoded. */
export async function readVideo(url, canvas) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, preload: "auto", src: url, playsInline: true });
  await once(video, "loadedmetadata");
  const facts = { duration: await lengthOf(video), width: video.videoWidth, height: video.videoHeight };
  const drawn = drawThumbnails(video, facts, canvas).catch(() => {}).finally(() => video.removeAttribute("src"));
  return { facts, drawn };
}

/** Return the length of a medium. Recordings do not have it in their header. */
async function lengthOf(medium) {
  if (Number.isFinite(medium.duration)) return medium.duration;
  medium.currentTime = 1e7;
  await once(medium, "durationchange", 5000).catch(() => {});
  return Number.isFinite(medium.duration) ? medium.duration : null;
}

async function drawThumbnails(video, { duration, width, height }, canvas) {
  const paint = prepare(canvas);
  const cell = canvas.width / THUMBNAILS;
  for (let i = 0; i < THUMBNAILS; i += 1) {
    video.currentTime = ((duration ?? 1) * (i + 0.5)) / THUMBNAILS;
    await once(video, "seeked", 5000);
    drawCover(paint, video, width, height, i * cell, cell, canvas.height);
  }
}

/** Return the size of a picture, and draw it. */
export async function readPicture(url, canvas) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  const [width, height] = [picture.naturalWidth, picture.naturalHeight];
  const paint = prepare(canvas);
  const share = Math.min(1, canvas.height / height);
  const wide = Math.min(canvas.width, width * share);
  drawCover(paint, picture, width, height, (canvas.width - wide) / 2, wide, canvas.height);
  return { facts: { duration: null, width, height }, drawn: Promise.resolve() };
}

/** Return the duration of a sound, and draw how loud it is. */
export async function readAudio(url, file, canvas) {
  if (file && file.size <= MOST_DECODED_BYTES) {
    const sound = await decode(file).catch(() => null);
    if (sound) {
      drawWave(sound, canvas);
      return { facts: { duration: sound.duration }, drawn: Promise.resolve() };
    }
  }
  const audio = document.createElement("audio");
  Object.assign(audio, { preload: "metadata", src: url });
  await once(audio, "loadedmetadata");
  return { facts: { duration: await lengthOf(audio) }, drawn: Promise.resolve() };
}

async function decode(file) {
  const context = new OfflineAudioContext(1, 1, 16_000);
  return context.decodeAudioData(await file.arrayBuffer());
}

function drawWave(sound, canvas) {
  const paint = prepare(canvas);
  const samples = sound.getChannelData(0);
  const ratio = window.devicePixelRatio || 1;
  const step = 4 * ratio;
  const bars = Math.floor(canvas.width / step);
  const peaks = Array.from({ length: bars }, (_, bar) => peakOf(samples, bar / bars, (bar + 1) / bars));
  const most = Math.max(0.02, ...peaks);
  paint.fillStyle = getComputedStyle(canvas).getPropertyValue("--accent");
  peaks.forEach((peak, bar) => {
    const high = Math.max(2 * ratio, (peak / most) * canvas.height * 0.82);
    paint.fillRect(bar * step + ratio, (canvas.height - high) / 2, 2 * ratio, high);
  });
}

/** The largest sample of a part. Some hundred samples of a long part say enough. */
function peakOf(samples, from, to) {
  const [first, last] = [Math.floor(samples.length * from), Math.floor(samples.length * to)];
  const stride = Math.max(1, Math.floor((last - first) / 400));
  let peak = 0;
  for (let i = first; i < last; i += stride) peak = Math.max(peak, Math.abs(samples[i]));
  return peak;
}

function prepare(canvas) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  return canvas.getContext("2d");
}

function drawCover(paint, picture, width, height, x, wide, high) {
  const scale = Math.max(wide / width, high / height);
  const [w, h] = [wide / scale, high / scale];
  paint.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h, x, 0, wide, high);
}
