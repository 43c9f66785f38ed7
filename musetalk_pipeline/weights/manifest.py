"""Which files inference needs, where they are published, and whether a file is the published one.

Sizes and digests: docs/reference.md §2.1.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import quote

from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.options import Version

HUGGING_FACE = "https://huggingface.co"
UNET_TENSORS, UNET_PARAMETERS = 686, 849_947_844  # both versions (docs/reference.md §2.3)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One published file.

    `path`: in the models folder. `source`: `repo@revision/file` on Hugging Face, or a whole URL.
    `sha256`: None if no trustworthy digest is known; then `check` judges the structure and
    `size_bytes` is only an estimate.
    """

    path: str
    source: str
    size_bytes: int
    sha256: str | None
    check: Callable[[Path], None] | None = None

    def urls(self, endpoint: str) -> tuple[str, ...]:
        """Return the addresses to try, in order, given the address of a Hugging Face server.

        A file that is not on Hugging Face may be on a mirror, under its path in the models folder.
        """
        server = endpoint.rstrip("/")
        if "://" in self.source:
            mirrored = () if server == HUGGING_FACE else (f"{server}/{quote(self.path)}",)
            return (*mirrored, self.source)
        place, _, file = self.source.partition("//")
        repo, _, revision = place.partition("@")
        return (f"{server}/{repo}/resolve/{revision}/{quote(file)}",)


class FileState(Enum):
    """What `verify` says of a file."""

    OK = "ok"
    STRUCTURE_ONLY = "ok by structure; no published digest is known"
    MISSING = "missing"
    WRONG_SIZE = "wrong size"
    WRONG_DIGEST = "wrong SHA-256"
    WRONG_STRUCTURE = "wrong structure"

    @property
    def is_good(self) -> bool:
        """Whether the file can be used."""
        return self in (FileState.OK, FileState.STRUCTURE_ONLY)


def state_of(file: WeightFile, path: Path) -> FileState:
    """Compare `path` with the published file, reading all of it."""
    if not path.is_file():
        return FileState.MISSING
    if file.sha256 is None:
        return _state_by_structure(file, path)
    if path.stat().st_size != file.size_bytes:
        return FileState.WRONG_SIZE
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return FileState.OK if digest == file.sha256 else FileState.WRONG_DIGEST


def _state_by_structure(file: WeightFile, path: Path) -> FileState:
    try:
        if file.check is not None:
            file.check(path)
    except ModelLoadFailed:
        return FileState.WRONG_STRUCTURE
    return FileState.STRUCTURE_ONLY


def _check_unet(path: Path) -> None:
    """Raise ModelLoadFailed unless the file is an undamaged pickle of a MuseTalk UNet.

    torch's files are zip archives, whose checksums reveal what a bad line or disk has changed.
    """
    from musetalk_pipeline.networks.checkpoint import read_weights

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ModelLoadFailed(f"{path} is damaged at {damaged}.", file=str(path))
    tensors = read_weights(path).tensors
    parameters = sum(tensor.numel() for tensor in tensors.values())
    if (len(tensors), parameters) != (UNET_TENSORS, UNET_PARAMETERS):
        raise ModelLoadFailed(
            f"{path} holds {len(tensors)} tensors with {parameters} numbers; MuseTalk's UNet has "
            f"{UNET_TENSORS} with {UNET_PARAMETERS}.",
            file=str(path),
        )


def _check_unet_config(path: Path) -> None:
    """Raise ModelLoadFailed unless the file is a configuration of MuseTalk's UNet."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = (config["in_channels"], config["out_channels"], config["cross_attention_dim"])
    except (ValueError, KeyError, TypeError) as exc:
        raise ModelLoadFailed(f"{path} is not a UNet configuration.", file=str(path)) from exc
    if found != (8, 4, 384):
        raise ModelLoadFailed(f"{path} configures another UNet than MuseTalk's.", file=str(path))


# The revisions at which the digests were taken.
_MUSETALK = "TMElyralab/MuseTalk@2bcb936e2fddb4d86db4c62fd45b387d0c061571//"
_VAE = "stabilityai/sd-vae-ft-mse@31f26fdeee1355a5c34592e401dd41e45d25a493//"
_WHISPER = "openai/whisper-tiny@169d4a4341b33bc18d8881c4b69c2e104e1cc0af//"
_UNETS: dict[Version, tuple[WeightFile, ...]] = {
    "v15": (
        WeightFile(
            "musetalkV15/musetalk.json",
            _MUSETALK + "musetalkV15/musetalk.json",
            748,
            "5b6923aee04d71692e0e9846c471e0a4ea07a4f686d39545e472bd4ba17e1b47",
        ),
        WeightFile(
            "musetalkV15/unet.pth",
            _MUSETALK + "musetalkV15/unet.pth",
            3_400_074_924,
            "7ebf6c98c181e20838e4c0054e96e944ac60d5d692cc01db42839fe11b787007",
        ),
    ),
    "v1": (
        WeightFile(
            "musetalk/musetalk.json",
            _MUSETALK + "musetalk/musetalk.json",
            748,
            None,
            _check_unet_config,
        ),
        WeightFile(
            "musetalk/pytorch_model.bin",
            _MUSETALK + "musetalk/pytorch_model.bin",
            3_400_074_924,
            None,
            _check_unet,
        ),
    ),
}
_SHARED = (
    WeightFile(
        "sd-vae/config.json",
        _VAE + "config.json",
        547,
        "92d3dfb746fca211a2c9e019e285f8597412211728dce3c5bcf4eda0f2d62e7e",
    ),
    WeightFile(
        "sd-vae/diffusion_pytorch_model.bin",
        _VAE + "diffusion_pytorch_model.bin",
        334_707_217,
        "1b4889b6b1d4ce7ae320a02dedaeff1780ad77d415ea0d744b476155c6377ddc",
    ),
    WeightFile(
        "whisper/config.json",
        _WHISPER + "config.json",
        1_983,
        "ffdccec4f3211f4c63310f2b7098f309fe70f3952cedc5e4d11e43f5b2379b98",
    ),
    WeightFile(
        "whisper/pytorch_model.bin",
        _WHISPER + "pytorch_model.bin",
        151_095_027,
        "9607f98a2b22d9e229ae43c52ecea79dcede9e0c5cfae67e8da6eda86d8aac1d",
    ),
    WeightFile(
        "dwpose/dw-ll_ucoco_384.pth",
        "yzd-v/DWPose@1a7144101628d69ee7a3768d1ee3a094070dc388//dw-ll_ucoco_384.pth",
        406_878_486,
        "0d9408b13cd863c4e95a149dd31232f88f2a12aa6cf8964ed74d7d97748c7a07",
    ),
    WeightFile(
        "face-parse-bisent/79999_iter.pth",
        "ManyOtherFunctions/face-parse-bisent@0073b233a5a3c4b1377d4dbf49245017938a72b5"
        "//79999_iter.pth",
        53_289_463,
        "468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
    ),
)
_S3FD = WeightFile(
    "s3fd/s3fd-619a316812.pth",
    "https://www.adrianbulat.com/downloads/python-fan/s3fd-619a316812.pth",
    89_843_225,
    "619a31681264d3f7f7fc7a16a42cbbe8b23f31a256f75a366e5a1bcd59b33543",
)


def published(version: Version, *, with_s3fd: bool = False) -> tuple[WeightFile, ...]:
    """Return the files that `version` needs; S3FD's only for `face_presence: s3fd`."""
    return (*_UNETS[version], *_SHARED, *((_S3FD,) if with_s3fd else ()))
