"""S3FD, the face detector by which the reference decides whether a frame has a face at all.

Zhang et al., "S3FD: Single Shot Scale-invariant Face Detector", 2017; layer names and conventions
are those of the published file s3fd-619a316812.pth (docs/reference.md §1.2, §2.3). Steps:
1. Pixels become RGB minus (104, 117, 123), in that order. These are the means of blue, green and
   red, but the reference applies them in this order, and the results here equal its results.
2. A VGG-16 trunk; six heads over it, one for each face size from 16 to 512 pixels.
3. Boxes with a score above 0.05, overlaps removed, then those above 0.5, best first.

The trunk's first blocks run in bands of rows, each with as many rows around it as its convolutions
reach. The result is the same, and a full-resolution layer never exists as a whole (1.1 GB at
1080p).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from musetalk_pipeline.boxes import Box
from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.networks.checkpoint import load_network, read_weights
from musetalk_pipeline.networks.precision import forbid_tf32, naming_lost_gpu

FILE = Path("s3fd", "s3fd-619a316812.pth")  # in the models folder
CHANNEL_OFFSETS = (104.0, 117.0, 123.0)
STRIDES = (4, 8, 16, 32, 64, 128)  # pixels between the anchors of each head
ANCHOR_STRIDES = 4  # an anchor is a square of so many strides
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
MIN_CANDIDATE_SCORE = 0.05
MAX_OVERLAP = 0.3
MIN_SCORE = 0.5
BAND_ROWS = 32  # even, as pooling halves a band; 24 % faster than 128 on one core (measured)
BATCH_PIXELS = 1920 * 1080  # of frames that go through together: bounds the memory


class _ScaledNorm(nn.Module):
    """Divides each pixel by its length over the channels, then weighs the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x: (n, channels, h, w)`, normalised."""
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10
        return x.div(length).mul_(self.weight[:, None, None])  # one copy of a large map, not three


class S3fd(nn.Module):
    """The network: pictures to class and box maps of the six heads. Flat names, as published."""

    def __init__(self, band_rows: int = BAND_ROWS) -> None:
        """`band_rows`: even, of the bands that the first blocks run in."""
        super().__init__()
        self._band_rows = band_rows
        channels = 3
        for block, (width, depth) in enumerate(
            ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), start=1
        ):
            for layer in range(1, depth + 1):
                self.add_module(f"conv{block}_{layer}", nn.Conv2d(channels, width, 3, padding=1))
                channels = width
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=3)  # VGG's first dense layer, as a convolution
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.conv6_1 = nn.Conv2d(1024, 256, 1)
        self.conv6_2 = nn.Conv2d(256, 512, 3, stride=2, padding=1)
        self.conv7_1 = nn.Conv2d(512, 128, 1)
        self.conv7_2 = nn.Conv2d(128, 256, 3, stride=2, padding=1)
        for name, channels in _HEADS.items():
            if name.endswith("_norm"):
                self.add_module(name, _ScaledNorm(channels))
            # The finest head has three background classes, which prevent false small faces.
            classes = 4 if name == "conv3_3_norm" else 2
            self.add_module(f"{name}_mbox_conf", nn.Conv2d(channels, classes, 3, padding=1))
            self.add_module(f"{name}_mbox_loc", nn.Conv2d(channels, 4, 3, padding=1))

    def forward(self, pictures: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return, for each head, (n, 2, h, w) background and face, and (n, 4, h, w) box offsets.

        `pictures`: (n, 3, H, W) RGB minus the channel offsets.
        """
        maps = self._trunk(pictures)
        heads = []
        for name in _HEADS:
            x = self._layer(name)(maps[name]) if name.endswith("_norm") else maps[name]
            classes, offsets = (
                self._layer(f"{name}_mbox_conf")(x),
                self._layer(f"{name}_mbox_loc")(x),
            )
            if classes.shape[1] == 4:
                background = classes[:, :3].amax(1, keepdim=True)
                classes = torch.cat([background, classes[:, 3:]], 1)
            heads.append((classes, offsets))
        return heads

    def _trunk(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        x = self._pooled_in_bands(x, "conv1_1", "conv1_2")
        x = self._pooled_in_bands(x, "conv2_1", "conv2_2")
        x = self._convolve(x, "conv3_1", "conv3_2", "conv3_3")
        maps["conv3_3_norm"] = x
        x = self._convolve(F.max_pool2d(x, 2), "conv4_1", "conv4_2", "conv4_3")
        maps["conv4_3_norm"] = x
        x = self._convolve(F.max_pool2d(x, 2), "conv5_1", "conv5_2", "conv5_3")
        maps["conv5_3_norm"] = x
        maps["fc7"] = x = self._convolve(F.max_pool2d(x, 2), "fc6", "fc7")
        maps["conv6_2"] = x = self._convolve(x, "conv6_1", "conv6_2")
        maps["conv7_2"] = self._convolve(x, "conv7_1", "conv7_2")
        return maps

    def _pooled_in_bands(self, x: Tensor, *names: str) -> Tensor:
        """Return the block's output, halved, computed over bands of rows."""
        reach = len(names)  # rows: one for each 3x3 convolution
        bands = []
        for top in range(0, x.shape[2] // 2 * 2, self._band_rows):
            above = min(reach, top)
            band = self._convolve(x[:, :, top - above : top + self._band_rows + reach], *names)
            bands.append(F.max_pool2d(band[:, :, above : above + self._band_rows], 2))
        return torch.cat(bands, 2)

    def _convolve(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = F.relu(self._layer(name)(x), inplace=True)
        return x

    def _layer(self, name: str) -> nn.Module:
        return self.get_submodule(name)


# Where the heads sit and how many channels they read there.
_HEADS = {
    "conv3_3_norm": 256,
    "conv4_3_norm": 512,
    "conv5_3_norm": 512,
    "fc7": 1024,
    "conv6_2": 512,
    "conv7_2": 256,
}


@dataclass(frozen=True, slots=True)
class ScoredBoxes:
    """Faces of one picture. `corners`: (k, 4) float32 x0, y0, x1, y1 in pixels; `scores`: (k,)."""

    corners: NDArray[np.float32]
    scores: NDArray[np.float32]


class FaceFinder:
    """Finds the most certain face of each frame."""

    def __init__(self, network: S3fd, device: str = "cpu") -> None:
        self._device = torch.device(device)
        forbid_tf32(self._device)
        self._network = network.to(self._device)
        self._offsets = torch.tensor(CHANNEL_OFFSETS, device=self._device)[:, None, None]

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> FaceFinder:
        """Load the published file.

        Raises:
            ModelLoadFailed: missing, damaged, or another network's.
        """
        if not path.is_file():
            raise ModelLoadFailed(
                f"{path} does not exist. Fetch it with `lipsync weights fetch --s3fd`, or let "
                "the landmarks decide (face_presence: landmarks).",
                file=str(path),
            )
        return cls(load_network(S3fd, read_weights(path)), device)

    def detect(self, frames: Sequence[NDArray[np.uint8]]) -> list[Box | None]:
        """Return the best face of each (H, W, 3) BGR frame; None without one.

        Corners are clipped at 0 and truncated, as the reference does. They may lie beyond the right
        and bottom edges of the frame.
        """
        boxes: list[Box | None] = []
        for batch in _batches(frames):
            with naming_lost_gpu("face finder", self._device):
                boxes += [_best_box(faces) for faces in self._find(batch)]
        return boxes

    @torch.inference_mode()
    def _find(self, frames: Sequence[NDArray[np.uint8]]) -> list[ScoredBoxes]:
        bgr = torch.from_numpy(np.stack(frames)).to(self._device)
        rgb = bgr.flip(-1).permute(0, 3, 1, 2).float().contiguous()
        heads = [
            (classes.softmax(1)[:, 1].cpu().numpy(), offsets.cpu().numpy())
            for classes, offsets in self._network(rgb - self._offsets)
        ]
        return [
            pick_faces(decode([(scores[i], offsets[i]) for scores, offsets in heads]))
            for i in range(len(frames))
        ]


def decode(heads: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> ScoredBoxes:
    """Return every candidate of one picture, from the finest head to the coarsest.

    `heads`: for each stride, face scores (h, w) in 0..1 and box offsets (4, h, w): centre x, y in
    anchors times 0.1, then the logarithm of width and height in anchors times 0.2.
    """
    corners, scores = [], []
    for stride, (head_scores, offsets) in zip(STRIDES, heads, strict=True):
        rows, columns = np.nonzero(head_scores > MIN_CANDIDATE_SCORE)
        anchor = np.float32(ANCHOR_STRIDES * stride)
        middle = np.stack([columns, rows], 1).astype(np.float32) * stride + stride / 2
        picked = offsets[:, rows, columns].T
        centre = middle + picked[:, :2] * np.float32(CENTRE_VARIANCE) * anchor
        size = anchor * np.exp(picked[:, 2:] * np.float32(SIZE_VARIANCE))
        low = centre - size / 2
        corners.append(np.concatenate([low, low + size], 1))
        scores.append(head_scores[rows, columns])
    return ScoredBoxes(
        np.concatenate(corners).astype(np.float32), np.concatenate(scores).astype(np.float32)
    )


def pick_faces(candidates: ScoredBoxes) -> ScoredBoxes:
    """Return the certain candidates without those that overlap a better one; best first.

    Overlap: intersection over union, sides counted as last minus first plus one.
    """
    order = candidates.scores.argsort()[::-1]
    corners, scores = candidates.corners[order], candidates.scores[order]
    areas = (corners[:, 2:] - corners[:, :2] + 1).prod(1)
    alive = np.ones(len(scores), bool)
    for i in range(len(scores)):
        # A candidate below the final score can only remove others that are below it too.
        if scores[i] <= MIN_SCORE:
            alive[i:] = False
            break
        if alive[i]:
            low = np.maximum(corners[i, :2], corners[:, :2])
            high = np.minimum(corners[i, 2:], corners[:, 2:])
            shared = np.maximum(high - low + 1, 0).prod(1)
            overlaps = shared / (areas[i] + areas - shared) > MAX_OVERLAP
            alive[i + 1 :] &= ~overlaps[i + 1 :]
    return ScoredBoxes(corners[alive], scores[alive])


def _best_box(faces: ScoredBoxes) -> Box | None:
    if len(faces.scores) == 0:
        return None
    x0, y0, x1, y1 = (int(max(corner, 0)) for corner in faces.corners[0])
    return Box(x0, y0, x1, y1)


def _batches(frames: Sequence[NDArray[np.uint8]]) -> Iterator[list[NDArray[np.uint8]]]:
    """Cut frames into runs of one size that are not too large together."""
    batch: list[NDArray[np.uint8]] = []
    for frame in frames:
        pixels = frame.shape[0] * frame.shape[1]
        if batch and (frame.shape != batch[0].shape or (len(batch) + 1) * pixels > BATCH_PIXELS):
            yield batch
            batch = []
        batch.append(frame)
    if batch:
        yield batch
