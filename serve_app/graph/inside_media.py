"""Media that come from inside this worker: uploads, the kept video of an avatar, and silence."""

import hashlib
import wave
from pathlib import Path

from musetalk_pipeline.errors import DownloadFailed, InvalidOptions, InvalidVideo
from musetalk_pipeline.media.media_file import admit
from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.plan import SAMPLE_RATE
from serve_app.avatars.shelf import AvatarShelf
from serve_app.contract.requests import KEPT_VIDEO, SILENCE


def fetch_kept_video(shelf: AvatarShelf | None, url: str, target: Path) -> str:
    """Copy the video of the avatar that an address names; return its SHA-256 in hex.

    Raises:
        DownloadFailed: it is not on this machine.
    """
    avatar_id = url.removeprefix(KEPT_VIDEO)
    digest = None if shelf is None else shelf.fetch_video(avatar_id, target)
    if digest is None:
        raise DownloadFailed(
            f"The video of the avatar {avatar_id} is not kept on this worker any more.",
            hint="Prepare the avatar again with POST /v1/avatars, or send video_url.",
        )
    return digest


def expired_upload() -> DownloadFailed:
    """Return the error for an upload that is gone."""
    return DownloadFailed(
        "The uploaded file is not kept on this worker any more.",
        hint="Upload it again and send the job again; it is kept for uploads.keep_hours.",
    )


def make_silence(
    url: str, video: Path, target: Path, options: JobOptions, limits: MediaLimits
) -> str:
    """Write silence that reaches as many frames of the video as an address says, or all of them;
    return its SHA-256 in hex.

    Raises:
        MediaError: the video cannot be used, or the length is out of bounds.
    """
    seconds = _wanted_s(url.removeprefix(SILENCE), limits)
    if seconds is None:
        # Silence that is too long does no harm, because the frames are shown once.
        slowest = 2.0 if options.frame.fps is None else 2 * limits.max_fps / options.frame.fps
        length_s = admit(video, limits, InvalidVideo).duration_s or limits.max_duration_s
        seconds = min(1 + slowest * length_s, limits.max_duration_s)
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        for _ in range(int(seconds)):
            file.writeframes(bytes(2 * SAMPLE_RATE))
        file.writeframes(bytes(2 * round((seconds - int(seconds)) * SAMPLE_RATE)))
    with target.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _wanted_s(text: str, limits: MediaLimits) -> float | None:
    if not text:
        return None
    seconds = float(text)
    if seconds > limits.max_duration_s:
        raise InvalidOptions(
            f"`duration_s` is {seconds:g}; at most {limits.max_duration_s:g} s are accepted."
        )
    return seconds
