"""The audio encoder of the warp engine: a mouth shape per output frame, from level and spectrum.

1. The whole clip is measured once, in chunks, every 10 ms: level and energies of five bands.
2. The clip's own levels set where the mouth closes and how loud is wide open; a clip without
   speech (silence, steady noise) stays closed.
3. Loudness and the position of the vowels' formants give opening, spreading and rounding; hiss with
   little voice closes the teeth.
4. Every track is smoothed over time, faster to open than to close, and read at the frames' times.

The tracks of recently used clips are kept. They are small (24 bytes per 10 ms) and depend on the
samples alone, so segments may be requested in any order, on any replica.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Speech, SpeechAudio
from musetalk_pipeline.options import SpeechOptions
from musetalk_pipeline.plan import SAMPLE_RATE, Segment, speech_fps

Float = NDArray[np.float32]

HOP = SAMPLE_RATE // 100  # 10 ms
WINDOW = 2 * HOP + HOP // 2  # 25 ms, the usual compromise for speech
FFT = 512
CHUNK_HOPS = 3000  # 30 s of sound in memory at a time
# Hz: voice's fundamental, first formant, second formant low and high, hiss.
BANDS = ((80, 300), (300, 1000), (1000, 1800), (1800, 3400), (3800, 7800))
# The mouth is ahead of the sound: people form a vowel before they voice it, and a picture that is
# late is noticed sooner than one that is early (ITU-R BT.1359: +45 ms against -125 ms).
LEAD_S = 0.04
ATTACK_S, RELEASE_S = 0.025, 0.05  # guesses: lips open in about 50 ms and close in about 100 ms
HOLD_S = 0.12  # how long `loudness` bridges the gaps inside words
SILENT_DB = -62.0  # below this, relative to full scale, nobody speaks, however quiet the clip is
RANGE_DB = 26.0  # from closed to wide open, below the clip's own loud passages
CLIPS_KEPT = 4  # at least; one more than there are jobs at the same time


@dataclass(frozen=True, slots=True)
class _Tracks:
    """Every 10 ms of a clip: `shapes` (n, 4) opening, wide, rounded, teeth; `loudness` (n,)."""

    shapes: Float
    loudness: Float


class WarpAudioEncoder:
    """Encodes speech as mouth shapes.

    `Speech.features`: (n, 4) float32 in 0..1: opening, wide, rounded, teeth.
    """

    def __init__(self, jobs: int = 1) -> None:
        """`jobs`: how many run at the same time. `max_clips`: clips whose tracks are kept."""
        self._lock = threading.Lock()
        self.max_clips = max(CLIPS_KEPT, jobs + 1)
        self._clips: OrderedDict[tuple[str, int], _Tracks] = OrderedDict()

    def encode(
        self, audio: SpeechAudio, fps: Fraction, segment: Segment, options: SpeechOptions
    ) -> Speech:
        """Return the mouth of each output frame of `segment`: its shape at the frame's middle, read
        LEAD_S ahead. Of `options`, only `frame_rate` has an effect.
        """
        fps = speech_fps(fps, options.frame_rate)
        tracks = self._tracks(audio)
        middles = (np.arange(segment.start, segment.end) + 0.5) / float(fps)
        places = (middles + LEAD_S) * (SAMPLE_RATE / HOP)
        return Speech(
            features=_read(tracks.shapes, places),
            loudness=_read(tracks.loudness[:, None], places)[:, 0].copy(),
        )

    def _tracks(self, audio: SpeechAudio) -> _Tracks:
        key = audio.key, audio.n_samples
        # One clip at a time, because two segments of a new clip would otherwise measure it twice.
        with self._lock:
            if key not in self._clips:
                self._clips[key] = _measure(audio)
                while len(self._clips) > self.max_clips:
                    self._clips.popitem(last=False)
            self._clips.move_to_end(key)
            return self._clips[key]


def _measure(audio: SpeechAudio) -> _Tracks:
    bands = _band_energies(audio)
    level = _level_db(bands)
    loud = _loud_level(level, bands)
    if loud is None:
        return _Tracks(np.zeros((len(level), 4), np.float32), np.zeros(len(level), np.float32))
    closed = max(_floor_level(level, loud), loud - RANGE_DB)
    openness = np.clip((level - closed) / (loud - closed), 0.0, 1.0)
    shapes = _shapes(bands, openness)
    smooth = np.stack([_over_time(track) for track in shapes.T], axis=1)
    return _Tracks(smooth.astype(np.float32), _presence(openness))


def _band_energies(audio: SpeechAudio) -> Float:
    """Return (n, 5) float32 mean power of each band, one row per 10 ms, centred on it."""
    count = -(-audio.n_samples // HOP)
    lead = (WINDOW - HOP) // 2
    taper = np.hanning(WINDOW).astype(np.float32)
    edges = [[round(hz * FFT / SAMPLE_RATE) for hz in band] for band in BANDS]
    out = np.empty((count, len(BANDS)), np.float32)
    for first in range(0, count, CHUNK_HOPS):
        last = min(first + CHUNK_HOPS, count)
        start, stop = first * HOP - lead, (last - 1) * HOP - lead + WINDOW
        # Read, not mapped: the pages of an hour-long mapping would count as this process's memory.
        inside = max(start, 0), min(stop, audio.n_samples)
        part = np.fromfile(audio.pcm_path, "<f4", inside[1] - inside[0], offset=4 * inside[0])
        # Zeros stand before and after the clip. Broken samples are silence, or at most very loud.
        part = np.pad(
            np.clip(np.nan_to_num(part), -8.0, 8.0),
            (max(-start, 0), max(0, stop - audio.n_samples)),
        )
        rows = np.lib.stride_tricks.sliding_window_view(part, WINDOW)[::HOP][: last - first]
        power = np.abs(np.fft.rfft(rows * taper, FFT, axis=1)) ** 2 / float((taper**2).sum() * FFT)
        for band, (low, high) in enumerate(edges):
            out[first:last, band] = power[:, low:high].sum(axis=1)
    return out


def _level_db(bands: Float) -> Float:
    """Return the level of the voice in dB of full scale. Hiss counts little: it opens no mouth."""
    voice = bands[:, :4].sum(axis=1) + 0.1 * bands[:, 4]
    return np.asarray(10.0 * np.log10(2.0 * voice + 1e-12), np.float32)


def _loud_level(level: Float, bands: Float) -> float | None:
    """Return the level of the clip's loud passages; None if nobody speaks in it."""
    active = level[level > np.percentile(level, 99.5) - 30.0]
    loud = float(np.percentile(active, 85)) if len(active) else SILENT_DB
    if loud <= SILENT_DB:
        return None
    return None if _is_steady_noise(level, bands) else loud


def _is_steady_noise(level: Float, bands: Float) -> bool:
    """Whether the clip is one even hiss, without syllables in its level or formants in its
    spectrum.
    """
    syllables = float(np.percentile(level, 90) - np.percentile(level, 10))
    widths = np.array([high - low for low, high in BANDS], np.float32)
    density = bands.mean(axis=0) / widths + 1e-15
    flatness = float(np.exp(np.log(density).mean()) / density.mean())
    return syllables < 6.0 and flatness > 0.3


def _floor_level(level: Float, loud: float) -> float:
    """Return the level up to which the mouth stays closed, which is that between the words."""
    return min(max(float(np.percentile(level, 8)) + 6.0, SILENT_DB), loud - 12.0)


def _shapes(bands: Float, openness: Float) -> Float:
    """Return (n, 4) opening, wide, rounded, teeth before smoothing."""
    pitch, first, second_low, second_high, hiss = (bands + 1e-12).T
    # Open vowels (a) have more energy around their first formant than below it.
    height = _relative(np.log(first / pitch), openness)
    # Front vowels (i, e) have a high second formant; rounded back vowels (u, o) hardly any.
    front = _relative(np.log(second_high / (first + second_low)), openness)
    hissing = _ramp(hiss / (pitch + first + second_low + second_high), 0.5, 2.0)
    opening = openness**1.3 * (0.78 + 0.22 * height) * (1.0 - 0.75 * hissing)
    wide = np.clip(front, 0.0, 1.0) * np.minimum(1.0, 2.0 * openness)
    rounded = np.clip(-front, 0.0, 1.0) * np.minimum(1.0, 2.0 * openness)
    teeth = hissing * _ramp(openness, 0.02, 0.15)
    # A hiss shows the teeth through a small slit even where there is no voice.
    opening = np.maximum(opening, 0.16 * teeth)
    return np.stack([opening, wide, rounded, teeth], axis=1).astype(np.float32)


def _relative(track: Float, openness: Float) -> Float:
    """Return where in this voice's own range a feature is, about -1..1; voices differ a lot."""
    spoken = track[openness > 0.3]
    if len(spoken) < 10:
        return np.zeros_like(track)
    low, median, high = np.percentile(spoken, (10, 50, 90))
    # The median alone would call the commoner of two kinds of vowel neutral.
    middle = (low + 2.0 * median + high) / 4.0
    return np.asarray(np.clip(2.0 * (track - middle) / max(high - low, 0.5), -1.0, 1.0), np.float32)


def _ramp(x: Float, low: float, high: float) -> Float:
    return np.asarray(np.clip((x - low) / (high - low), 0.0, 1.0), np.float32)


def _over_time(track: Float) -> Float:
    """Smooth with a lop-sided bell, so that a rise is quick and a fall is slow."""
    reach = round(3 * RELEASE_S * SAMPLE_RATE / HOP)
    offset = np.arange(-reach, reach + 1) * (HOP / SAMPLE_RATE)
    # Convolution turns the kernel round: positive offsets weigh the past.
    kernel = np.exp(-0.5 * (offset / np.where(offset > 0, RELEASE_S, ATTACK_S)) ** 2)
    padded = np.pad(track, reach)
    return np.convolve(padded, kernel / kernel.sum(), mode="valid").astype(np.float32)


def _presence(openness: Float) -> Float:
    """Return how surely somebody speaks, 0..1, held over the short gaps inside words."""
    hold = round(HOLD_S * SAMPLE_RATE / HOP)
    padded = np.pad(_ramp(openness, 0.03, 0.2), hold)
    held = np.lib.stride_tricks.sliding_window_view(padded, 2 * hold + 1).max(axis=1)
    return np.clip(_over_time(held), 0.0, 1.0).astype(np.float32)


def _read(track: Float, places: NDArray[np.floating[Any]]) -> Float:
    """Return rows of `track` (n, k) between its 10 ms places; zero after its end."""
    # Row i is centred on (i + 0.5) hops.
    at = places - 0.5
    low = np.floor(at).astype(np.intp)
    part = (at - low)[:, None]
    padded = np.vstack([track, np.zeros((1, track.shape[1]), np.float32)])
    first = padded[np.clip(low, 0, len(track))]
    second = padded[np.clip(low + 1, 0, len(track))]
    return np.ascontiguousarray(first * (1.0 - part) + second * part, np.float32)
