"""The values that travel between the stages of one job.

    open ─► SourceVideo, SpeechAudio ─► plan
    prepare(block) ─► PreparedBlock ─► encode ─► AvatarBlock
    encode_audio(segment) ─► Speech;  AvatarBlock + Speech ─► generate ─► DrawnFaces
    AvatarBlock + DrawnFaces ─► compose ─► Piece ─► stitch

They are small, because full frames never leave a stage. Every array is C-contiguous, so that it can
travel out of band. What a stage cost travels next to its value, in a `cost.Measured`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.boxes import Box
from musetalk_pipeline.options import EncodeOptions, SpeechOptions, Surround
from musetalk_pipeline.plan import Block, Segment


@dataclass(frozen=True, slots=True)
class ColourTags:
    """How YUV numbers become light. ffmpeg's names; "unknown" if the file has no tag."""

    space: str = "unknown"  # the matrix: bt709, smpte170m, …
    range: str = "unknown"  # tv or pc
    primaries: str = "unknown"
    transfer: str = "unknown"


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """A validated video file on this node.

    `width`, `height`: as displayed, rotation applied. `fps`: the exact constant rate that frames
    are counted at (`r_frame_rate`, to which a variable-rate input is brought by repeating and
    dropping frames, as the reference does). `n_frames`: frames at that rate. `index_path`: the
    FrameIndex that `read_frames` needs, on the same node. `read_path`: what it decodes, if that is
    not `path` but a copy of its packets that can be sought exactly. `demuxer`, `stream`: ffmpeg's
    name and the stream index in what it decodes. `pixel_format`: ffmpeg's name, as stored.
    """

    path: Path
    sha256: str
    size_bytes: int
    width: int
    height: int
    fps: Fraction
    n_frames: int
    duration_s: float
    colour: ColourTags
    index_path: Path | None = None
    read_path: Path | None = None
    demuxer: str = ""
    stream: int = 0
    pixel_format: str = "yuv420p"


@dataclass(frozen=True, slots=True)
class SoundStream:
    """Where the sound of a job lies. `demuxer`: ffmpeg's name; `stream`: the index in the file."""

    path: Path
    demuxer: str
    stream: int
    sample_rate: int
    channels: int


@dataclass(frozen=True, slots=True)
class SpeechAudio:
    """A validated audio file on this node, in the two forms that the stages need.

    `pcm_path`: 16 kHz mono float32 little-endian raw samples, mean of the channels, soxr HQ (what
    librosa.load gives). `track_path`: AAC in an .m4a, to be muxed unchanged; unless `is_tracked`,
    it has yet to be made (`speech_audio.make_track`). `n_samples` counts `pcm_path`. `sha256`,
    `size_bytes`: of the file that was sent. `stream`: where its sound lies. `parts`: what both
    forms are joined from, if they are not the whole sound of that file.
    """

    pcm_path: Path
    track_path: Path
    sha256: str
    size_bytes: int
    n_samples: int
    duration_s: float
    stream: SoundStream | None = None
    parts: tuple[SoundPart, ...] = ()
    is_tracked: bool = True

    @property
    def key(self) -> str:
        """What the samples depend on, for caches of what is computed from them."""
        if not self.parts:
            return self.sha256
        spoken = [(part.source and part.source.key, part.is_spoken) for part in self.parts]
        names = [(*each, *part.span) for each, part in zip(spoken, self.parts, strict=True)]
        return hashlib.sha256(repr(names).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SoundPart:
    """`n_samples` of 16 kHz of a sound from `start` on. `source`: None is silence. `is_spoken`: the
    mouth follows it; otherwise it is only heard.
    """

    source: SpeechAudio | None
    start: int
    n_samples: int
    is_spoken: bool = True

    @property
    def span(self) -> tuple[int, int]:
        """The samples `[start, end)`."""
        return self.start, self.start + self.n_samples


@dataclass(frozen=True, slots=True)
class Picture:
    """The output picture and how source frames are brought to it. Made once per job, before any
    block.

    First `crop` (in displayed source pixels; None: all), then scale to `scaled_width x
    scaled_height`, then put at `pad_x, pad_y` in `width x height`, which is black around it or
    (`surround`) shows the picture itself, enlarged and blurred. There are bars on two opposite
    sides or on none. All sizes and offsets are even. Stages work on the fitted frames only.
    """

    width: int
    height: int
    scaled_width: int
    scaled_height: int
    pad_x: int
    pad_y: int
    crop: Box | None
    colour: ColourTags
    surround: Surround = "black"


@dataclass(frozen=True, slots=True)
class Face:
    """The face of one source frame, in pixels of the fitted frame.

    `points`: (68, 2) float32 x, y, iBUG order. `box`: what the model redraws, chin margin included,
    clipped to the frame; with `edges: stretch` it may reach over the right and bottom edges, and
    the points are stretched with the picture in it. `score`: the detector's confidence, 0 to 1.
    `others`: further faces of the same frame that are redrawn, each without others of its own.
    """

    points: NDArray[np.float32]
    box: Box
    score: float
    others: tuple[Face, ...] = ()

    @property
    def of_frame(self) -> tuple[Face, ...]:
        """This face and the others, in the order of their rows."""
        return (self, *self.others)


def in_rows(faces: Iterable[Face | None]) -> list[Face]:
    """Return all faces of frames in the order in which they have rows in arrays."""
    return [each for face in faces if face is not None for each in face.of_frame]


@dataclass(frozen=True, slots=True)
class PreparedBlock:
    """What the CPU made of a block. Rows of the arrays belong to the faces, in the order of
    `in_rows`: frame by frame.

    `faces`: one entry per source frame of the block, None where there is no face.
    `crops`: (k, 256, 256, 3) uint8 BGR, the face boxes, LANCZOS4.
    `parse_inputs`: (k, 512, 512, 3) uint8 RGB, the crop boxes resized for the parser; (0, …) if the
    engine needs none.
    """

    block: Block
    faces: tuple[Face | None, ...]
    crops: NDArray[np.uint8]
    parse_inputs: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class AvatarBlock:
    """All that depends on the video alone, for one block: computed once, whatever the audio does
    with it.

    `appearance`: (k, …) what the engine draws from: latents (k, 8, 32, 32) float32 for musetalk,
    crops (k, 256, 256, 3) uint8 BGR for warp. `masks`: (k, 32768) uint8, the 512x512 binary
    replace-masks of the crop boxes, `np.packbits` of row-major bits. Rows belong to the faces, in
    the order of `in_rows`: frame by frame.
    """

    block: Block
    faces: tuple[Face | None, ...]
    appearance: NDArray[np.float32] | NDArray[np.uint8]
    masks: NDArray[np.uint8]

    def first(self, block: Block) -> AvatarBlock:
        """Return the first frames of this block, as the block that has only those."""
        faces = self.faces[: len(block)]
        count = len(in_rows(faces))
        return AvatarBlock(block, faces, self.appearance[:count], self.masks[:count])

    def rows(self, segment: Segment) -> list[range]:
        """Return, for each output frame of `segment`, the rows of its faces in `appearance` and
        `masks`; an empty range without a face.
        """
        rows_of: list[range] = []
        count = 0
        for face in self.faces:
            faces = 0 if face is None else len(face.of_frame)
            rows_of.append(range(count, count + faces))
            count += faces
        return [rows_of[frame - self.block.start] for frame in segment.source_frames()]


@dataclass(frozen=True, slots=True)
class Speech:
    """What is spoken during one segment, encoded for the engine.

    `features`: (n, …) float32, one row per output frame: (n, 50, 384) Whisper windows for musetalk,
    (n, 4) mouth shapes for warp. `loudness`: (n,) float32 in 0..1, 0 in silence; the
    weight of the drawn face if `rest_in_silence`.
    """

    features: NDArray[np.float32]
    loudness: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FacesToDraw:
    """Which faces of a segment are drawn: `rows` of the AvatarBlock, and `places` of their output
    frames in the segment. `weights`: as in DrawnFaces.
    """

    rows: list[int]
    places: list[int]
    weights: NDArray[np.float32]

    @classmethod
    def of(
        cls, avatar: AvatarBlock, speech: Speech, segment: Segment, options: SpeechOptions
    ) -> FacesToDraw:
        """Choose them: with `rest_in_silence`, those at which somebody speaks."""
        present = [(row, at) for at, rows in enumerate(avatar.rows(segment)) for row in rows]
        weights = np.ones(len(present), np.float32)
        if options.rest_in_silence:
            weights = speech.loudness[[at for _, at in present]].astype(np.float32)
        drawn = [each for each, weight in zip(present, weights, strict=True) if weight > 0]
        return cls([row for row, _ in drawn], [at for _, at in drawn], weights)


@dataclass(frozen=True, slots=True)
class DrawnFaces:
    """The generated faces of one segment.

    `weights`: (m,) float32 in 0..1, one for each face of each output frame, in order: how much of
    the drawn face replaces the source; all 1 unless `rest_in_silence`. `faces`: (d, 256, 256, 3)
    uint8 BGR, one for each weight above 0. The others would not show, so they are not drawn.
    """

    segment: Segment
    faces: NDArray[np.uint8]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Piece:
    """One encoded segment: H.264 packets in display order from 0, in a small container that
    `stitch` reads.

    `data`: (size,) uint8, a view of bytes, so that it travels out of band. `frames_with_face`: how
    many of its frames have a face.
    """

    segment: Segment
    data: NDArray[np.uint8]
    frames_with_face: int


# What one frame takes in bytes; frame_bytes adds it up.
FACE = 256 * 256 * 3  # of a crop, and of a drawn face; uint8
PARSE_INPUT = 512 * 512 * 3  # uint8
MASK = 512 * 512 // 8
LATENTS = 8 * 32 * 32 * 4  # float32
WHISPER_WINDOW, MOUTH_SHAPE = 50 * 384 * 4, 4 * 4  # float32
LANDMARKS = 2048  # of a prepared and an encoded frame, with what describes them
CRF_STEP = 6  # x264 halves the rate with so many steps


def frame_bytes(engine: str, picture: Picture, encode: EncodeOptions, faces: int = 1) -> int:
    """Return what one frame with so many faces takes: their crops, parser's inputs, appearances,
    masks, drawn faces, and its sound and encoded picture, all at the same time.

    The encoded picture is estimated from above. The rest depends on the engine alone, because full
    frames never leave a stage. A frame with fewer faces takes less.
    """
    raw = picture.width * picture.height * 3 // 2  # 4:2:0, as it is encoded
    encoded = raw / 2 ** (encode.crf / CRF_STEP)
    own = PARSE_INPUT + LATENTS + WHISPER_WINDOW if engine == "musetalk" else FACE + MOUTH_SHAPE
    return faces * (own + 2 * FACE + MASK + LANDMARKS) + round(encoded)
