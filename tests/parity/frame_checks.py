"""The stages from frames to finished frames, each fed what the reference fed it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musetalk_pipeline.boxes import Box, crop_box, face_box
from musetalk_pipeline.networks.parser import BiSeNet, load_parser, to_labels
from musetalk_pipeline.networks.unet import MouthUnet, load_unet, unet_files
from musetalk_pipeline.networks.vae import (
    FaceDecoder,
    FaceEncoder,
    load_vae,
    scaling_factor,
    seeded_noise,
    to_images,
    to_latents,
    to_pixels,
)
from musetalk_pipeline.options import MaskOptions, ParsingMode, Version
from musetalk_pipeline.pixels.blend import crop_mask, paste_face, soft_mask
from musetalk_pipeline.pixels.crops import face_crop, parse_input
from musetalk_pipeline.pixels.masks import cheek_columns, cheek_kernel, jaw_kernel, replace_mask
from musetalk_pipeline.plan import source_of

from .golden import (
    BATCH,
    V1_CHEEKS,
    GoldenSet,
    IncompleteSet,
    corners,
    frames_of,
    named_frames,
    numbers_in,
)
from .report import EXACT, Row, Tolerance, compare, row

LATENTS = Tolerance(2e-5)
POSITIONS = Tolerance(1e-6)
UNET = Tolerance(5e-5)
DECODED = Tolerance(1, 0.002)
MEANS = Tolerance(0.01)  # levels, of whole faces: 0.2 % of values one level off move it by 0.002
LOGITS_RELATIVE = 1e-4
LABELS = Tolerance(np.inf, 0.0001)
# Where our parse map or face stands in for one that the set lacks: the chain's. Else exact.
OWN_INPUT = Tolerance(1, 0.005)

PARSING_MODES: tuple[ParsingMode, ...] = ("jaw", "raw", "neck")
REALTIME_BLUR = 0.1
OFFLINE_BLUR = 0.05


def check_coords(golden: GoldenSet) -> Iterator[Row]:
    """Boxes from landmarks, for every shift in the set."""
    arrays = golden.load("coords")
    yield compare("coords", "landmarks", golden.landmarks, arrays["landmarks"])
    shifts = numbers_in(arrays, r"bbox_shift_(-?\d+)")
    if 0 not in shifts:
        raise IncompleteSet("coords.npz lacks bbox_shift_0")
    for shift in shifts:
        boxes = [face_box(points, shift) for points in arrays["landmarks"]]
        ours = [[0, 0, 0, 0] if box is None else corners(box) for box in boxes]
        name = f"bbox_shift_{shift}"
        yield compare("coords", name, ours, arrays[name])


class VersionChecks:
    """The checks of one model version. Networks are loaded when first needed."""

    def __init__(self, golden: GoldenSet, version: Version) -> None:
        self.golden = golden
        self.version: Version = version
        self._parsed: dict[int, NDArray[np.uint8]] = {}  # labels by source frame
        self.modes: tuple[ParsingMode, ...] = ("raw",) if version == "v1" else PARSING_MODES

    @cached_property
    def boxes(self) -> list[Box]:
        """The face box of each source frame."""
        return self.golden.boxes(self.version)

    @cached_property
    def crops(self) -> NDArray[np.uint8]:
        """(n, 256, 256, 3) uint8 BGR."""
        pairs = zip(self.golden.frames, self.boxes, strict=True)
        return np.stack([face_crop(frame, box) for frame, box in pairs])

    @cached_property
    def unet(self) -> MouthUnet:
        """The version's UNet."""
        return load_unet(*unet_files(self.golden.models, self.version))

    @cached_property
    def parser(self) -> BiSeNet:
        """The parser."""
        return load_parser(self.golden.models / "face-parse-bisent")

    def masks(self, mode: ParsingMode) -> MaskOptions:
        """Return the mask options that the set was made with."""
        if self.version == "v1":
            return MaskOptions(mode, V1_CHEEKS, V1_CHEEKS)
        left, right = self.cheeks
        return MaskOptions(mode, left, right)

    @cached_property
    def cheeks(self) -> tuple[int, int]:
        """The cheek widths that the set's cheek mask shows."""
        middle = np.flatnonzero(self.golden.load("v15_cheeks")["cheek_mask_row"] == 0)
        return 256 - (int(middle[0]) - 1), int(middle[-1]) + 1 - 256

    def _logits(self, source: int) -> Tensor:
        picture = parse_input(self.golden.frames[source], self.boxes[source])
        with torch.inference_mode():
            logits: Tensor = self.parser(torch.tensor(picture)[None])
        return logits

    def check_crop(self) -> Iterator[Row]:
        """Crops, and what the VAE is given of the first one."""
        stage, arrays = f"{self.version}_crop", self.golden.load(f"{self.version}_crop")
        stored = arrays["crop256"]
        kept = frames_of(stored, self.crops)
        row = compare(stage, "crop256", self.crops[kept], stored, EXACT)
        yield row.noting(named_frames(kept))
        image = to_images(torch.from_numpy(stored[:1]))[:, 0].numpy()
        shown = arrays["vae_in_masked"]
        step = image.shape[-1] // shown.shape[-1]
        yield compare(stage, "vae_in_masked", image[:, :, ::step, ::step], shown, EXACT)

    def check_latents(self) -> Iterator[Row]:
        """Latents of all crops, by the mean and sampled from the seed."""
        stage, arrays = f"{self.version}_latents", self.golden.load(f"{self.version}_latents")
        folder = self.golden.models / "sd-vae"
        moments = _batched(FaceEncoder(load_vae(folder)), torch.from_numpy(self.crops))
        factor = scaling_factor(folder)
        yield compare(stage, "mode", to_latents(moments, factor), arrays["mode"], LATENTS)
        noise = seeded_noise(int(arrays["seed"]), 0, len(self.crops))
        sampled = to_latents(moments, factor, noise)
        yield compare(stage, "sampled", sampled, arrays["sampled"], LATENTS)

    def check_unet(self) -> Iterator[Row]:
        """One pass over all output frames, from the golden latents and prompts."""
        stage, arrays = f"{self.version}_unet", self.golden.load(f"{self.version}_unet")
        prompts = self.golden.load("audio_short")["prompts"]
        placed = prompts[:1] + self.unet.positions[:, : prompts.shape[1]].numpy()
        yield compare(stage, "pe_added0", placed, arrays["pe_added0"], POSITIONS)
        windows = self.golden.windows.copy()
        windows[frames_of(prompts, windows)] = prompts
        sampled = self.golden.load(f"{self.version}_latents")["sampled"]
        looks = sampled[[source_of(frame, len(sampled)) for frame in range(len(windows))]]
        drawn = _batched(self.unet, torch.from_numpy(looks), torch.from_numpy(windows))
        yield compare(stage, "pred", drawn, arrays["pred"], UNET)

    @cached_property
    def decoded(self) -> NDArray[np.uint8]:
        """All faces, (n, 256, 256, 3) uint8 BGR, from the golden UNet output."""
        pred = torch.from_numpy(self.golden.load(f"{self.version}_unet")["pred"])
        decoder = FaceDecoder(load_vae(self.golden.models / "sd-vae"))
        return np.asarray(_batched(decoder, pred, finish=to_pixels).numpy())

    def check_decoded(self) -> Iterator[Row]:
        """Faces from the golden UNet output."""
        stage = f"{self.version}_decoded"
        yield from compare_faces(self.golden, self.version, self.decoded, stage, DECODED)

    def check_parse(self) -> Iterator[Row]:
        """Parse map of the first source frame; masks from the golden map."""
        stage, arrays = f"{self.version}_parse", self.golden.load(f"{self.version}_parse")
        yield compare(stage, "crop_box", corners(crop_box(self.boxes[0])), arrays["crop_box"])
        logits = self._logits(0)
        stored = arrays["logits64"]
        step = logits.shape[-1] // stored.shape[-1]
        sampled = logits[0, :, ::step, ::step].numpy()
        relative = np.abs(sampled.astype(np.float64) - stored) / np.abs(stored).max()
        yield row(stage, "logits64 (relative)", relative, Tolerance(LOGITS_RELATIVE))
        yield compare(stage, "labels", _labels(logits), arrays["labels"], LABELS)
        for mode in PARSING_MODES:
            mask = replace_mask(arrays["labels"], self.masks(mode))
            yield compare(stage, f"{mode} (of golden labels)", mask, arrays[mode])

    def check_cheeks(self) -> Iterator[Row]:
        """Kernels, cheek columns, and jaw masks of other cheek widths."""
        stage, arrays = "v15_cheeks", self.golden.load("v15_cheeks")
        yield compare(stage, "kernel", jaw_kernel(), arrays["kernel"])
        yield compare(stage, "cheek_kernel", cheek_kernel(), arrays["cheek_kernel"])
        columns = cheek_columns(*self.cheeks)
        yield compare(stage, "cheek_mask_row", columns, arrays["cheek_mask_row"] > 0)
        widths = [key for key in sorted(arrays) if re.fullmatch(r"jaw_\d+_\d+", key)]
        if not widths:
            raise IncompleteSet("v15_cheeks.npz has no jaw_LEFT_RIGHT")
        labels = self.golden.load("v15_parse")["labels"]
        for key in widths:
            left, right = (int(width) for width in key.split("_")[1:])
            mask = replace_mask(labels, MaskOptions("jaw", left, right))
            yield compare(stage, key, mask, arrays[key])

    def check_blended(self) -> Iterator[Row]:
        """Finished frames, from golden faces and golden masks where there is one."""
        stage = f"{self.version}_blended"
        arrays = self.golden.load(stage)
        for mode in self.modes:
            for frame, picture in stored_frames(arrays["idx"], arrays[mode], mode == self.modes[0]):
                blended, tolerance, remark = self._blend_golden(frame, mode, OFFLINE_BLUR)
                name = f"{mode} frame {frame}"
                yield compare(stage, name, blended, picture, tolerance).noting(remark)

    def check_realtime(self) -> Iterator[Row]:
        """Masks and single frames with the realtime script's wider blur."""
        stage, mode = f"{self.version}_realtime", self.modes[0]
        arrays = self.golden.load(stage)
        sources = {0, *numbers_in(arrays, r"mask(\d+)"), *numbers_in(arrays, r"box(\d+)")}
        for source in sorted(sources):
            ours = crop_mask(self.mask(source, mode), self.boxes[source], REALTIME_BLUR)
            tolerance, remark = _expected(["parse map"] if source else [])
            name = f"mask{source}"
            yield compare(stage, name, ours, arrays[name], tolerance).noting(remark)
            box, name = corners(crop_box(self.boxes[source])), f"box{source}"
            yield compare(stage, name, box, arrays[name])
        for frame in sorted({0, *numbers_in(arrays, r"blended(\d+)")}):
            blended, tolerance, remark = self._blend_golden(frame, mode, REALTIME_BLUR)
            name = f"blended{frame}"
            yield compare(stage, name, blended, arrays[name], tolerance).noting(remark)

    def _blend_golden(
        self, frame: int, mode: ParsingMode, blur: float
    ) -> tuple[NDArray[np.uint8], Tolerance, str]:
        """Return a finished frame of golden inputs as far as there are any; what may differ; why.

        A set has the faces of some output frames and the parse map of the first source frame.
        """
        stored = self.golden.load(f"{self.version}_decoded")
        places = stored["idx"].tolist()
        is_golden = frame in places
        face = stored["faces"][places.index(frame)] if is_golden else self.decoded[frame]
        source = source_of(frame, len(self.boxes))
        own = [] if is_golden else ["face"]
        if source:
            own.append("parse map")
        return self.blend(source, face, self.mask(source, mode), blur), *_expected(own)

    def mask(self, source: int, mode: ParsingMode) -> NDArray[np.uint8]:
        """Return the (512, 512) mask of a source frame: golden for the first, else of our map."""
        if source == 0:
            return np.asarray(self.golden.load(f"{self.version}_parse")[mode], np.uint8)
        if source not in self._parsed:
            self._parsed[source] = _labels(self._logits(source))
        return replace_mask(self._parsed[source], self.masks(mode))

    def blend(
        self, source: int, face: NDArray[np.uint8], replace: NDArray[np.uint8], blur: float
    ) -> NDArray[np.uint8]:
        """Return the source frame with `face` pasted in."""
        frame, box = self.golden.frames[source], self.boxes[source]
        height, width = frame.shape[:2]
        # The reference stretches a face over the frame's edge and drops what lies outside (Q13).
        whole = Box(min(0, box.x0), min(0, box.y0), max(width, box.x1), max(height, box.y1))
        canvas = np.zeros((whole.height, whole.width, 3), np.uint8)
        inside = canvas[-whole.y0 :, -whole.x0 :][:height, :width]
        inside[...] = frame
        soft = soft_mask(replace, box, blur)
        if soft is not None:
            paste_face(canvas, whole, face, box, soft)
        return inside


def stored_frames(
    frames: NDArray[np.int64], pictures: NDArray[np.uint8], is_complete: bool
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the output frame of each stored picture. The version's own mode has them all.

    The other modes have the first few.
    """
    too_few = len(pictures) < len(frames) if is_complete else not len(pictures)
    if too_few or len(pictures) > len(frames):
        raise IncompleteSet(f"{len(pictures)} pictures of the {len(frames)} frames of idx")
    yield from zip(frames.tolist(), pictures, strict=False)


def compare_faces(
    golden: GoldenSet,
    version: Version,
    faces: NDArray[np.uint8],
    stage: str,
    tolerance: Tolerance,
) -> Iterator[Row]:
    """Compare generated faces with the stored ones, and by mean and spread with the rest."""
    arrays = golden.load(f"{version}_decoded")
    row = compare(stage, "faces", faces[arrays["idx"]], arrays["faces"], tolerance)
    yield row.noting(named_frames(arrays["idx"].tolist()))
    spread = np.stack([faces.mean((1, 2, 3)), faces.std((1, 2, 3))])
    yield compare(stage, "mean_std", spread, arrays["mean_std"], MEANS)


def _expected(own: list[str]) -> tuple[Tolerance, str]:
    """Return what may differ, and why, where `own` inputs stand in for golden ones."""
    return (OWN_INPUT, f"own {' and '.join(own)}") if own else (EXACT, "")


def _batched(
    network: torch.nn.Module,
    *inputs: Tensor,
    finish: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Tensor:
    with torch.inference_mode():
        return torch.cat(
            [
                finish(network(*(rows[start : start + BATCH] for rows in inputs)))
                for start in range(0, len(inputs[0]), BATCH)
            ]
        )


def _labels(logits: Tensor) -> NDArray[np.uint8]:
    return np.asarray(to_labels(logits)[0].numpy())
