"""The interface of every engine, in two halves: an AudioEncoder on the CPU, which turns sound into
features, and an Engine on a GPU or the CPU, which draws faces from them.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

from musetalk_pipeline.artifacts import AvatarBlock, DrawnFaces, PreparedBlock, Speech, SpeechAudio
from musetalk_pipeline.options import MaskOptions, SpeechOptions
from musetalk_pipeline.plan import Segment
from musetalk_pipeline.watch import Check, go_on


class AudioEncoder(Protocol):
    """Turns sound into the features that the engine draws from, one segment at a time.

    The result depends on nothing but the arguments.
    """

    def encode(
        self, audio: SpeechAudio, fps: Fraction, segment: Segment, options: SpeechOptions
    ) -> Speech:
        """Return the features of `segment`'s output frames. Recently used audio stays in a small
        cache.
        """
        ...


class Engine(Protocol):
    """Draws faces. One instance per process; its networks are loaded by the constructor."""

    @property
    def name(self) -> str:
        """`warp`, or `musetalk`."""
        ...

    @property
    def model_version(self) -> str:
        """`v15`, `v1`, or for warp its own version. Goes into responses, `/health` and sidecars."""
        ...

    @property
    def needs_parse_inputs(self) -> bool:
        """Whether PreparedBlock.parse_inputs must be filled."""
        ...

    def warm_up(self) -> None:
        """Do one tiny generation with every network. A replica is ready when this returns."""
        ...

    def encode(
        self, prepared: PreparedBlock, options: MaskOptions, check: Check = go_on
    ) -> AvatarBlock:
        """Compute all that depends on the video alone; `check` is called between batches."""
        ...

    def generate(
        self,
        avatar: AvatarBlock,
        speech: Speech,
        segment: Segment,
        options: SpeechOptions,
        check: Check = go_on,
    ) -> DrawnFaces:
        """Draw the faces of one segment; `check` is called between batches.

        Raises:
            OutOfGpuMemory: not even one frame fits. Send the segment to another replica.
        """
        ...

    def peak_memory_mib(self) -> float | None:
        """Return the peak GPU memory since the last call, None on a CPU."""
        ...

    def held_memory_mib(self) -> float | None:
        """Return the GPU memory that this process keeps for the engine now, None on a CPU."""
        ...
