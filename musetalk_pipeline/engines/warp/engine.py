"""The engine without weights: opens, closes and shapes the mouth that is already in the picture.

`WarpAudioEncoder` (audio_encoder.py) derives mouth shapes from the sound, and `WarpEngine` draws
them (mouth_drawing.py). It does not replace the trained networks, and its name appears wherever an
engine is named.
"""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import (
    AvatarBlock,
    DrawnFaces,
    Face,
    FacesToDraw,
    PreparedBlock,
    Speech,
    in_rows,
)
from musetalk_pipeline.boxes import Box, crop_box
from musetalk_pipeline.engines.warp.audio_encoder import WarpAudioEncoder
from musetalk_pipeline.engines.warp.mouth_drawing import MouthShape, draw_mouth
from musetalk_pipeline.engines.warp.mouth_map import MouthMap, map_mouth, moving_region
from musetalk_pipeline.engines.warp.version import MODEL_VERSION
from musetalk_pipeline.options import MaskOptions, SpeechOptions
from musetalk_pipeline.pixels.blend import MASK_SIDE
from musetalk_pipeline.pixels.crops import FACE_SIDE
from musetalk_pipeline.plan import Block, Segment, plan_frames
from musetalk_pipeline.watch import Check, go_on

__all__ = ["WarpAudioEncoder", "WarpEngine"]


class WarpEngine:
    """Draws mouths by warping. It has no state, so any instance gives the same picture."""

    @property
    def name(self) -> str:
        """Return `warp`."""
        return "warp"

    @property
    def model_version(self) -> str:
        """Return the version of the drawing."""
        return MODEL_VERSION

    @property
    def needs_parse_inputs(self) -> bool:
        """Return False, because the masks come from the landmarks."""
        return False

    def warm_up(self) -> None:
        """Draw one mouth on a grey face."""
        block, segment = _one_frame()
        face = _plain_face()
        crops = np.full((1, FACE_SIDE, FACE_SIDE, 3), 128, np.uint8)
        nothing = np.empty((0, MASK_SIDE, MASK_SIDE, 3), np.uint8)
        avatar = self.encode(PreparedBlock(block, (face,), crops, nothing), MaskOptions())
        speech = Speech(np.full((1, 4), 0.5, np.float32), np.ones(1, np.float32))
        self.generate(avatar, speech, segment, SpeechOptions())

    def encode(
        self, prepared: PreparedBlock, options: MaskOptions, check: Check = go_on
    ) -> AvatarBlock:
        """Keep the crops, and outline in each mask what drawing may move.

        The parser's options (`parsing_mode`, cheek widths) have no effect here; `blur` acts when
        the face is pasted.
        """
        faces = in_rows(prepared.faces)
        masks = np.empty((len(faces), MASK_SIDE * MASK_SIDE // 8), np.uint8)
        for row, face in enumerate(faces):
            check()
            masks[row] = replace_mask(face, map_mouth(face))
        return AvatarBlock(
            block=prepared.block,
            faces=prepared.faces,
            appearance=prepared.crops,
            masks=masks,
        )

    def generate(
        self,
        avatar: AvatarBlock,
        speech: Speech,
        segment: Segment,
        options: SpeechOptions,
        check: Check = go_on,
    ) -> DrawnFaces:
        """Draw the faces of one segment from `speech.features` (n, 4): opening, wide, rounded,
        teeth.
        """
        faces = in_rows(avatar.faces)
        chosen = FacesToDraw.of(avatar, speech, segment, options)
        drawn = np.empty((len(chosen.rows), FACE_SIDE, FACE_SIDE, 3), np.uint8)
        for place, (row, frame) in enumerate(zip(chosen.rows, chosen.places, strict=True)):
            check()
            shape = MouthShape(*(float(value) for value in speech.features[frame]))
            crop = np.asarray(avatar.appearance[row], np.uint8)
            drawn[place] = draw_mouth(crop, map_mouth(faces[row]), shape)
        return DrawnFaces(segment, drawn, chosen.weights)

    def peak_memory_mib(self) -> float | None:
        """Return None, because this engine does not use a GPU."""
        return None

    def held_memory_mib(self) -> float | None:
        """Return None, because this engine does not use a GPU."""
        return None


def replace_mask(face: Face, mouth: MouthMap) -> NDArray[np.uint8]:
    """Return the packed 512x512 mask of the crop box: the outline of what drawing may move."""
    box, crop = face.box, crop_box(face.box)
    to_frame = np.array([box.width, box.height], np.float32) / FACE_SIDE
    outline = moving_region(mouth) * to_frame + (box.x0 - crop.x0, box.y0 - crop.y0)
    mask = np.zeros((MASK_SIDE, MASK_SIDE), np.uint8)
    places = np.rint(outline * (MASK_SIDE / max(crop.width, 1)) - 0.5).astype(np.int32)
    cv2.fillPoly(mask, [places], 1)
    return np.packbits(mask)


def _one_frame() -> tuple[Block, Segment]:
    plan = plan_frames(1, 1, Fraction(25))
    return plan.blocks[0], plan.segments[0]


def _plain_face() -> Face:
    """Return a face with its 68 points roughly in their places, 256 pixels wide."""
    jaw = [(128 - 120 * np.cos(a), 110 + 136 * np.sin(a)) for a in np.linspace(0, np.pi, 17)]
    brows = [(x, 70) for x in (30, 50, 70, 90, 110, 146, 166, 186, 206, 226)]
    nose = [(128, y) for y in (90, 105, 120, 135)] + [(x, 145) for x in (112, 120, 128, 136, 144)]
    eyes = [(x + dx, 90) for dx in (0, 118) for x in (48, 58, 70, 82, 70, 58)]
    outer = [(128 - 36 * np.cos(a), 185 - 14 * np.sin(a)) for a in np.arange(12) * np.pi / 6]
    inner = [(128 - 28 * np.cos(a), 185 - 4 * np.sin(a)) for a in np.arange(8) * np.pi / 4]
    points = np.array([*jaw, *brows, *nose, *eyes, *outer, *inner], np.float32)
    return Face(points, Box(0, 0, FACE_SIDE, FACE_SIDE), 1.0)
