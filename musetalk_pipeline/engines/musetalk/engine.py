"""The MuseTalk engine: draws the mouth with the published networks, equal to the reference.

1. The constructor loads UNet, VAE and parser and puts them on the device.
2. `warm_up` sends a frame through each of them; on a GPU, first, a batch of every shape.
3. `encode` and `generate` may be called from any thread; one call computes at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from musetalk_pipeline.artifacts import (
    AvatarBlock,
    DrawnFaces,
    FacesToDraw,
    PreparedBlock,
    Speech,
)
from musetalk_pipeline.networks.files import PARSER_FOLDER, VAE_FOLDER
from musetalk_pipeline.networks.parser import PARSE_PX, load_parser, to_labels
from musetalk_pipeline.networks.precision import (
    check_precision,
    default_batch_size,
    resolve_device,
)
from musetalk_pipeline.networks.runner import Acceleration, BatchRunner, Counters
from musetalk_pipeline.networks.unet import CONTEXT_ROWS, CONTEXT_WIDTH, load_unet, unet_files
from musetalk_pipeline.networks.vae import (
    FACE_PX,
    FaceDecoder,
    FaceEncoder,
    load_vae,
    scaling_factor,
    seeded_noise,
    to_latents,
    to_pixels,
)
from musetalk_pipeline.options import MaskOptions, Precision, SpeechOptions, Version
from musetalk_pipeline.pixels.masks import pack_mask, replace_mask
from musetalk_pipeline.plan import Segment
from musetalk_pipeline.watch import Check, go_on

logger = logging.getLogger(__name__)

# Growing and shrinking a jaw takes 4 ms of one CPU, during which the GPU waits (measured).
MASK_THREADS = 4
_MASK_BYTES = PARSE_PX * PARSE_PX // 8


@dataclass(frozen=True, slots=True)
class MuseTalkOptions:
    """How the networks run. The defaults equal the reference most closely.

    `device`: `cpu`, `cuda`, `cuda:N` or `auto`. `batch_size`: frames in one pass; None chooses by
    free GPU memory, 4 on a CPU. `gpu_share`: how much of that may be used, if other processes are
    about to load onto the GPU. `seed`: None takes the mean of the VAE's posterior; a number
    samples it as the reference does after `torch.manual_seed(seed)`. `threads`: CPU threads of the
    whole process; None leaves them. `unet_weights`, `unet_config`: other files than the published
    ones in the models folder.
    """

    version: Version = "v15"
    device: str = "cpu"
    precision: Precision = "float32"
    batch_size: int | None = None
    gpu_share: float = 1.0
    seed: int | None = None
    threads: int | None = None
    acceleration: Acceleration = field(default_factory=Acceleration)
    unet_weights: Path | None = None
    unet_config: Path | None = None


class MuseTalkEngine:
    """Draws faces with MuseTalk v1.5 or v1."""

    name = "musetalk"
    needs_parse_inputs = True

    def __init__(self, models: Path, options: MuseTalkOptions | None = None) -> None:
        """Load all networks from a models folder in the published layout.

        Raises:
            ModelLoadFailed: a file is missing or damaged, or the device does not exist.
        """
        started = time.monotonic()
        self.options = options or MuseTalkOptions()
        if self.options.threads is not None:
            torch.set_num_threads(self.options.threads)
        self._device = resolve_device(self.options.device)
        self._dtype = check_precision(self.options.precision, self._device)
        self.counters = Counters()
        self._lock = threading.Lock()
        self._has_run_shapes = False
        self._mask_threads = ThreadPoolExecutor(MASK_THREADS, thread_name_prefix="masks")
        self._load(models)
        self._set_batch_size()
        logger.info(
            "engine loaded",
            extra={
                "engine": self.name,
                "version": self.options.version,
                "device": str(self._device),
                "precision": self.options.precision,
                "batch_size": self.batch_size,
                "elapsed_s": round(time.monotonic() - started, 3),
                "gpu_mib": self._allocated_mib(),
            },
        )

    @property
    def model_version(self) -> str:
        """`v15` or `v1`."""
        return self.options.version

    @property
    def batch_size(self) -> int:
        """The smallest batch that any network runs with now."""
        return min(runner.batch_size for runner in self._runners())

    def warm_up(self) -> None:
        """Send a grey face through every network; the first time on a GPU, every batch shape.

        Batches that do not fit are then halved, algorithms chosen and graphs recorded before the
        first job. cuDNN remembers its choices for each thread, so call this from the thread that
        will `encode` and `generate`.
        """
        if self._device.type != "cpu" and not self._has_run_shapes:
            # The largest comes first, because it may halve the batch, which leaves fewer shapes.
            self._draw_grey(self.batch_size)
            for count in sorted(set().union(*(runner.shapes() for runner in self._runners()))):
                self._draw_grey(count)
            self.peak_memory_mib()  # resets the peak: no job needed the memory of these trials
            self._has_run_shapes = True
        self._draw_grey(1)

    def _draw_grey(self, count: int) -> None:
        self._face_latents(np.full((count, FACE_PX, FACE_PX, 3), 128, np.uint8), first_frame=0)
        self._masks(np.full((count, PARSE_PX, PARSE_PX, 3), 128, np.uint8), MaskOptions())
        self._draw(
            np.zeros((count, 8, 32, 32), np.float32),
            np.zeros((count, CONTEXT_ROWS, CONTEXT_WIDTH), np.float32),
        )

    def encode(
        self, prepared: PreparedBlock, options: MaskOptions, check: Check = go_on
    ) -> AvatarBlock:
        """Compute latents (k, 8, 32, 32) and packed masks (k, 32768) of the frames with a face.

        `check` is called before every batch.

        Raises:
            OutOfGpuMemory: not even one frame fits. Send the block to another replica.
        """
        return AvatarBlock(
            block=prepared.block,
            faces=prepared.faces,
            appearance=self._face_latents(prepared.crops, prepared.block.start, check),
            masks=self._masks(prepared.parse_inputs, options, check),
        )

    def generate(
        self,
        avatar: AvatarBlock,
        speech: Speech,
        segment: Segment,
        options: SpeechOptions,
        check: Check = go_on,
    ) -> DrawnFaces:
        """Draw the faces of one segment, those of frames without a face left out.

        `check` is called before every batch.

        Raises:
            OutOfGpuMemory: not even one frame fits. Send the segment to another replica.
        """
        chosen = FacesToDraw.of(avatar, speech, segment, options)
        latents = avatar.appearance[chosen.rows].astype(np.float32)
        faces = self._draw(latents, speech.features[chosen.places], check)
        return DrawnFaces(segment, faces, chosen.weights)

    def peak_memory_mib(self) -> float | None:
        """Return the peak of GPU memory held by tensors since the last call; None on a CPU."""
        if self._device.type == "cpu":
            return None
        peak = torch.cuda.max_memory_allocated(self._device) / 2**20
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak

    def held_memory_mib(self) -> float | None:
        """Return the GPU memory that torch has reserved; None on a CPU."""
        if self._device.type == "cpu":
            return None
        return torch.cuda.memory_reserved(self._device) / 2**20

    def _face_latents(
        self, crops: NDArray[np.uint8], first_frame: int, check: Check = go_on
    ) -> NDArray[np.float32]:
        """Return the (k, 8, 32, 32) latents of (k, 256, 256, 3) uint8 BGR crops."""
        if not len(crops):
            return np.zeros((0, 8, 32, 32), np.float32)
        with self._lock:
            moments = self._encoder.run(_rows(crops), check=check).cpu()
        noise = None
        if self.options.seed is not None:
            noise = seeded_noise(self.options.seed, first_frame, len(crops))
        return np.asarray(to_latents(moments, self._scaling_factor, noise).numpy())

    def _masks(
        self, parse_inputs: NDArray[np.uint8], options: MaskOptions, check: Check = go_on
    ) -> NDArray[np.uint8]:
        """Return the (k, 32768) packed masks of (k, 512, 512, 3) uint8 RGB crop boxes."""
        if not len(parse_inputs):
            return np.zeros((0, _MASK_BYTES), np.uint8)
        with self._lock:
            labels = self._parser.run(_rows(parse_inputs), check=check).cpu().numpy()
        masks = self._mask_threads.map(
            lambda frame: pack_mask(replace_mask(frame, options)), labels
        )
        return np.stack(list(masks))

    def _draw(
        self, latents: NDArray[np.float32], features: NDArray[np.float32], check: Check = go_on
    ) -> NDArray[np.uint8]:
        """Return (m, 256, 256, 3) uint8 BGR from (m, 8, 32, 32) and (m, 50, 384)."""
        if not len(latents):
            return np.zeros((0, FACE_PX, FACE_PX, 3), np.uint8)
        with self._lock:
            drawn = self._unet.run(_rows(latents), _rows(features), check=check)
            return np.asarray(self._decoder.run(drawn, check=check).cpu().numpy())

    def _load(self, models: Path) -> None:
        weights, config = unet_files(
            models,
            self.options.version,
            weights=self.options.unet_weights,
            config=self.options.unet_config,
        )
        vae = models / VAE_FOLDER
        self._scaling_factor = scaling_factor(vae)
        self._unet = self._runner("UNet", lambda: load_unet(weights, config), _unchanged)
        self._encoder = self._runner("VAE encoder", lambda: FaceEncoder(load_vae(vae)), _as_float32)
        self._decoder = self._runner("VAE decoder", lambda: FaceDecoder(load_vae(vae)), to_pixels)
        self._parser = self._runner(
            "face parser",
            lambda: load_parser(models / PARSER_FOLDER),
            to_labels,
            # As in the reference, in whatever precision the others run. It costs little, and it
            # shapes the mask.
            dtype=torch.float32,
        )

    def _runner(
        self,
        name: str,
        make: Callable[[], nn.Module],
        finish: Callable[[Tensor], Tensor],
        dtype: torch.dtype | None = None,
    ) -> BatchRunner:
        return BatchRunner(
            name,
            make,
            finish,
            device=self._device,
            dtype=dtype or self._dtype,
            counters=self.counters,
            acceleration=self.options.acceleration,
        )

    def _runners(self) -> tuple[BatchRunner, ...]:
        return self._encoder, self._parser, self._unet, self._decoder

    def _set_batch_size(self) -> None:
        size = self.options.batch_size or default_batch_size(
            self._device, self._dtype, self.options.gpu_share
        )
        for runner in self._runners():
            runner.batch_size = size

    def _allocated_mib(self) -> float | None:
        if self._device.type == "cpu":
            return None
        return round(torch.cuda.memory_allocated(self._device) / 2**20, 1)


def _rows(array: NDArray[np.uint8] | NDArray[np.float32]) -> Tensor:
    """Return a tensor over the array, or over a copy if it is read-only.

    Arrays from another process are read-only. torch would warn about them, and might write.
    """
    return torch.from_numpy(np.require(array, requirements=("C", "W")))


def _unchanged(rows: Tensor) -> Tensor:
    return rows


def _as_float32(rows: Tensor) -> Tensor:
    return rows.float()
