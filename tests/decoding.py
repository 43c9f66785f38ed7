"""What a video shows, decoded by PyAV."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def frames_of(source: Path | str) -> NDArray[np.uint8]:
    """Decode a whole (short) video, a file or an address: (n, H, W, 3) uint8 BGR."""
    with av.open(str(source)) as container:
        return np.stack([f.to_ndarray(format="bgr24") for f in container.decode(video=0)])
