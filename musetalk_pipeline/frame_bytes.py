"""How much memory a frame takes on its way between the stages."""

from __future__ import annotations

from musetalk_pipeline.artifacts import Picture
from musetalk_pipeline.options import EncodeOptions

FACE = 256 * 256 * 3  # of a crop, and of a drawn face; uint8
PARSE_INPUT = 512 * 512 * 3  # uint8
MASK = 512 * 512 // 8
LATENTS = 8 * 32 * 32 * 4  # float32
WHISPER_WINDOW, MOUTH_SHAPE = 50 * 384 * 4, 4 * 4  # float32
LANDMARKS = 2048  # of a prepared and an encoded frame, with what describes them
CRF_STEP = 6  # x264 halves the rate with so many steps


def frame_bytes(engine: str, picture: Picture, encode: EncodeOptions) -> int:
    """Return what one frame with a face takes: its crop, parser's input, appearance, mask, sound,
    drawn face and encoded picture, all at the same time.

    The encoded picture is estimated from above. The rest depends on the engine alone, because full
    frames never leave a stage. A frame without a face takes less.
    """
    raw = picture.width * picture.height * 3 // 2  # 4:2:0, as it is encoded
    encoded = raw / 2 ** (encode.crf / CRF_STEP)
    own = PARSE_INPUT + LATENTS + WHISPER_WINDOW if engine == "musetalk" else FACE + MOUTH_SHAPE
    return own + 2 * FACE + MASK + LANDMARKS + round(encoded)
