"""The stages from frames to finished frames, each fed what the reference fed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musetalk_pipeline.blend import crop_mask, paste_face, soft_mask
from musetalk_pipeline.boxes import Box, crop_box, face_box
from musetalk_pipeline.crops import face_crop, parse_input
from musetalk_pipeline.masks import cheek_columns, cheek_kernel, jaw_kernel, replace_mask
from musetalk_pipeline.networks.parser import BiSeNet, load_parser, to_labels
from musetalk_pipeline.networks.unet import MouthUnet, load_unet, unet_files
from musetalk_pipeline.networks.vae import (
    FaceDecoder,
    LookEncoder,
    load_vae,
    scaling_factor,
    seeded_noise,
    to_images,
    to_latents,
    to_pixels,
)
from musetalk_pipeline.options import MaskOptions, ParsingMode, Version
from musetalk_pipeline.plan import source_of

from .golden import BATCH, V1_CHEEKS, GoldenSet, numbers_in, prompt_frames
from .hearing import FPS, hear
from .report import EXACT, Row, Tolerance, compare, row

LATENTS = Tolerance(2e-5)
POSITIONS = Tolerance(1e-6)
UNET = Tolerance(5e-5)
DECODED = Tolerance(1, 0.002)
MEANS = Tolerance(0.01)  # levels, of whole faces: 0.2 % of values one level off move it by 0.002
LOGITS_RELATIVE = 1e-4
LABELS = Tolerance(np.inf, 0.0001)
# Where our own parse map or face decides: single labels may differ (above), and the blur spreads
# each over its kernel.
BLENDED = Tolerance(2, 0.005)
SOFT_MASK = Tolerance(8, 0.005)

REALTIME_BLUR = 0.1
OFFLINE_BLUR = 0.05


class VersionChecks:
    """The checks of one model version. Networks are loaded when first needed."""

    def __init__(self, golden: GoldenSet, version: Version) -> None:
        self.golden = golden
        self.version: Version = version
        self._parsed: dict[int, NDArray[np.uint8]] = {}  # labels by source frame
        self.modes: tuple[ParsingMode, ...] = (
            ("raw",) if version == "v1" else ("jaw", "raw", "neck")
        )

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

    def check_coords(self) -> list[Row]:
        """Boxes from landmarks, for every shift in the set."""
        arrays = self.golden.load("coords")
        rows = [compare("coords", "landmarks", self.golden.landmarks, arrays["landmarks"])]
        for shift in numbers_in(arrays, r"bbox_shift_(-?\d+)"):
            boxes = [face_box(points, shift) for points in arrays["landmarks"]]
            ours = [[0, 0, 0, 0] if box is None else _corners(box) for box in boxes]
            rows.append(
                compare("coords", f"bbox_shift_{shift}", ours, arrays[f"bbox_shift_{shift}"])
            )
        return rows

    def check_crop(self) -> list[Row]:
        """Crops, and what the VAE is given of the first one."""
        stage, arrays = f"{self.version}_crop", self.golden.load(f"{self.version}_crop")
        stored = arrays["crop256"]
        kept = [0, 1, len(self.crops) // 2]  # the frames that a golden set keeps
        image = to_images(torch.from_numpy(stored[:1]))[:, 0].numpy()
        shown = arrays["vae_in_masked"]
        step = image.shape[-1] // shown.shape[-1]
        return [
            compare(stage, "crop256", self.crops[kept], stored, EXACT),
            compare(stage, "vae_in_masked", image[:, :, ::step, ::step], shown, EXACT),
        ]

    def check_latents(self) -> list[Row]:
        """Latents of all crops, by the mean and sampled from the seed."""
        stage, arrays = f"{self.version}_latents", self.golden.load(f"{self.version}_latents")
        folder = self.golden.models / "sd-vae"
        moments = _batched(LookEncoder(load_vae(folder)), torch.from_numpy(self.crops))
        factor = scaling_factor(folder)
        noise = seeded_noise(int(arrays["seed"]), 0, len(self.crops))
        return [
            compare(stage, "mode", to_latents(moments, factor), arrays["mode"], LATENTS),
            compare(
                stage, "sampled", to_latents(moments, factor, noise), arrays["sampled"], LATENTS
            ),
        ]

    def check_unet(self) -> list[Row]:
        """One pass over all output frames, from the golden latents and prompts."""
        stage, arrays = f"{self.version}_unet", self.golden.load(f"{self.version}_unet")
        pred = arrays["pred"]
        prompts = self.golden.load("audio_short")["prompts"]
        windows = hear(self.golden, self.golden.short_audio, FPS, list(range(len(pred))))
        windows[prompt_frames(len(pred))] = prompts
        sampled = self.golden.load(f"{self.version}_latents")["sampled"]
        looks = sampled[[source_of(frame, len(sampled)) for frame in range(len(pred))]]
        drawn = _batched(self.unet, torch.from_numpy(looks), torch.from_numpy(windows))
        placed = prompts[:1] + self.unet.positions[:, : prompts.shape[1]].numpy()
        return [
            compare(stage, "pe_added0", placed, arrays["pe_added0"], POSITIONS),
            compare(stage, "pred", drawn, pred, UNET),
        ]

    @cached_property
    def decoded(self) -> NDArray[np.uint8]:
        """All faces, (n, 256, 256, 3) uint8 BGR, from the golden UNet output."""
        pred = torch.from_numpy(self.golden.load(f"{self.version}_unet")["pred"])
        decoder = FaceDecoder(load_vae(self.golden.models / "sd-vae"))
        return np.asarray(_batched(decoder, pred, finish=to_pixels).numpy())

    def check_decoded(self) -> list[Row]:
        """Faces from the golden UNet output."""
        stage = f"{self.version}_decoded"
        return compare_faces(self.golden, self.version, self.decoded, stage, DECODED)

    def check_parse(self) -> list[Row]:
        """Parse map of the first source frame; masks from the golden map."""
        stage, arrays = f"{self.version}_parse", self.golden.load(f"{self.version}_parse")
        logits = self._logits(0)
        stored = arrays["logits64"]
        step = logits.shape[-1] // stored.shape[-1]
        sampled = logits[0, :, ::step, ::step].numpy()
        relative = np.abs(sampled.astype(np.float64) - stored) / np.abs(stored).max()
        rows = [
            compare(stage, "crop_box", _corners(crop_box(self.boxes[0])), arrays["crop_box"]),
            row(stage, "logits64 (relative)", relative, Tolerance(LOGITS_RELATIVE)),
            compare(stage, "labels", _labels(logits), arrays["labels"], LABELS),
        ]
        for mode in ("jaw", "raw", "neck"):
            mask = replace_mask(arrays["labels"], self.masks(mode))
            rows.append(compare(stage, f"{mode} (of golden labels)", mask, arrays[mode]))
        return rows

    def check_cheeks(self) -> list[Row]:
        """Kernels, cheek columns, and jaw masks of other cheek widths."""
        stage, arrays = "v15_cheeks", self.golden.load("v15_cheeks")
        labels = self.golden.load("v15_parse")["labels"]
        columns = cheek_columns(*self.cheeks)
        rows = [
            compare(stage, "kernel", jaw_kernel(), arrays["kernel"]),
            compare(stage, "cheek_kernel", cheek_kernel(), arrays["cheek_kernel"]),
            compare(stage, "cheek_mask_row", columns, arrays["cheek_mask_row"] > 0),
        ]
        for key in sorted(arrays):
            if key.startswith("jaw_"):
                left, right = (int(width) for width in key.split("_")[1:])
                mask = replace_mask(labels, MaskOptions("jaw", left, right))
                rows.append(compare(stage, key, mask, arrays[key]))
        return rows

    def check_blended(self) -> list[Row]:
        """Finished frames, from golden faces, and golden masks where there is one."""
        stage = f"{self.version}_blended"
        faces = self.golden.load(f"{self.version}_decoded")
        arrays = self.golden.load(stage)
        rows: list[Row] = []
        stored = {
            int(frame): face for frame, face in zip(faces["idx"], faces["faces"], strict=True)
        }
        ours = self.decoded if set(arrays["idx"].tolist()) - set(stored) else None
        for mode in self.modes:
            for frame, picture in zip(arrays["idx"].tolist(), arrays[mode], strict=False):
                source = source_of(frame, len(self.boxes))
                is_golden = frame in stored and source == 0
                face = stored[frame] if frame in stored else _of(ours, frame)
                mask = self._golden_mask(mode) if is_golden else self.mask(source, mode)
                blended = self.blend(source, face, mask, OFFLINE_BLUR)
                tolerance = EXACT if is_golden else BLENDED
                rows.append(compare(stage, f"{mode} frame {frame}", blended, picture, tolerance))
        return rows

    def check_realtime(self) -> list[Row]:
        """Masks and one frame with the realtime script's wider blur."""
        stage, mode = f"{self.version}_realtime", self.modes[0]
        arrays = self.golden.load(stage)
        rows: list[Row] = []
        for source in numbers_in(arrays, r"mask(\d+)"):
            is_golden = source == 0
            replace = self._golden_mask(mode) if is_golden else self.mask(source, mode)
            ours = crop_mask(replace, self.boxes[source], REALTIME_BLUR)
            tolerance = EXACT if is_golden else SOFT_MASK
            rows.append(compare(stage, f"mask{source}", ours, arrays[f"mask{source}"], tolerance))
            box = _corners(crop_box(self.boxes[source]))
            rows.append(compare(stage, f"box{source}", box, arrays[f"box{source}"]))
        faces = self.golden.load(f"{self.version}_decoded")
        first = faces["faces"][faces["idx"].tolist().index(0)]
        blended = self.blend(0, first, self._golden_mask(mode), REALTIME_BLUR)
        rows.append(compare(stage, "blended0", blended, arrays["blended0"]))
        return rows

    def mask(self, source: int, mode: ParsingMode) -> NDArray[np.uint8]:
        """Return the (512, 512) mask of a source frame, from our own parse map."""
        if source not in self._parsed:
            self._parsed[source] = _labels(self._logits(source))
        return replace_mask(self._parsed[source], self.masks(mode))

    def _golden_mask(self, mode: ParsingMode) -> NDArray[np.uint8]:
        return np.asarray(self.golden.load(f"{self.version}_parse")[mode], np.uint8)

    def blend(
        self, source: int, face: NDArray[np.uint8], replace: NDArray[np.uint8], blur: float
    ) -> NDArray[np.uint8]:
        """Return the source frame with `face` pasted in."""
        frame = self.golden.frames[source].copy()
        whole = Box(0, 0, frame.shape[1], frame.shape[0])
        soft = soft_mask(replace, self.boxes[source], blur)
        if soft is not None:
            paste_face(frame, whole, face, self.boxes[source], soft)
        return frame


def compare_faces(
    golden: GoldenSet,
    version: Version,
    faces: NDArray[np.uint8],
    stage: str,
    tolerance: Tolerance,
) -> list[Row]:
    """Compare generated faces with the stored ones, and by mean and spread with the rest."""
    arrays = golden.load(f"{version}_decoded")
    spread = np.stack([faces.mean((1, 2, 3)), faces.std((1, 2, 3))])
    return [
        compare(stage, "faces", faces[arrays["idx"]], arrays["faces"], tolerance),
        compare(stage, "mean_std", spread, arrays["mean_std"], MEANS),
    ]


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


def _corners(box: Box) -> list[int]:
    return [box.x0, box.y0, box.x1, box.y1]


def _of(
    faces: Sequence[NDArray[np.uint8]] | NDArray[np.uint8] | None, frame: int
) -> NDArray[np.uint8]:
    if faces is None:
        raise ValueError(f"no face for frame {frame}")
    return faces[frame]
