"""Makes golden sets of other frames, sounds and rates, by another route than the pipeline.

Written from the specification with diffusers, transformers and Pillow, as the reference is; only
the parser's network is ours, for there is no other. The layout is that of ../shared/golden.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import soundfile
import soxr
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperModel

from musetalk_pipeline.networks.parser import load_parser

Pixels = NDArray[np.uint8]
Corners = tuple[int, int, int, int]
SCALE = 0.18215  # of latents, diffusers' default for this VAE
RATE = 16_000


@dataclass(frozen=True)
class Inputs:
    """What a set is made of. `kept`: the source frames whose crops it keeps, the first included."""

    frames: list[Pixels]
    landmarks: NDArray[np.float32]
    wav: Path
    models: Path
    fps: int = 25
    kept: tuple[int, ...] = (0,)
    versions: tuple[str, ...] = ("v15", "v1")
    seed: int = 7
    long_s: float = 31.0


def make_set(inputs: Inputs, folder: Path) -> None:
    """Write the npz and wav files and meta.json into `folder`, frames into `folder`/frames."""
    (folder / "frames").mkdir(parents=True)
    for number, frame in enumerate(inputs.frames):
        cv2.imwrite(str(folder / "frames" / f"{number:08d}.png"), frame)
    np.savez(folder / "landmarks.npz", landmarks=inputs.landmarks)
    stages, prompts, n_long = _make_audio(inputs, folder)
    stages["coords"] = {"landmarks": inputs.landmarks} | {
        f"bbox_shift_{shift}": np.array([_face_box(p, shift) for p in inputs.landmarks])
        for shift in (0, 5, -7)
    }
    for version in inputs.versions:
        stages |= _make_version(inputs, version, prompts)
    for name, arrays in stages.items():
        np.savez_compressed(folder / f"{name}.npz", **arrays)
    listed = {
        name: {key: [list(np.shape(a)), str(np.asarray(a).dtype)] for key, a in arrays.items()}
        for name, arrays in stages.items()
    }
    counts: dict[str, Any] = {
        str(fps): math.floor(n_long / RATE * int(fps)) for fps in (25, 23.976, 30)
    }
    meta = {"stages": listed, "long_counts_by_fps": counts | {"60": "reference calls exit()"}}
    (folder / "meta.json").write_text(json.dumps(meta))


def _make_audio(
    inputs: Inputs, folder: Path
) -> tuple[dict[str, dict[str, Any]], NDArray[np.float32], int]:
    speech, rate = soundfile.read(inputs.wav, dtype="float32")
    soundfile.write(folder / "short16k.wav", _to_16k(speech, rate), RATE, subtype="PCM_16")
    stereo = np.stack([speech, speech / 2], axis=1)
    soundfile.write(folder / "stereo22k.wav", stereo, rate, subtype="PCM_16")
    n_long = int(inputs.long_s * RATE)
    soundfile.write(
        folder / "long.wav", np.resize(_to_16k(speech, rate), n_long), RATE, subtype="PCM_16"
    )

    encoder = _AudioEncoder(inputs.models)
    short = _load(folder / "short16k.wav")
    prompts, hidden = encoder.windows(short, inputs.fps)
    mel = encoder.mel(short)
    kept = [0, len(prompts) // 3, len(prompts) - 1]
    resampled = _load(folder / "stereo22k.wav")
    of_resampled, _ = encoder.windows(resampled, inputs.fps)
    long = _load(folder / "long.wav")
    windows, _ = encoder.windows(long, 25)
    seam = [0, len(windows) // 2, 748, 749, 750, len(windows) - 1]
    return (
        {
            "audio_short": {
                "mel": mel[:, :, :200],
                "mel_tail": mel[:, :, -7:],
                "nsamples": len(short),
                "count": len(prompts),
                "hidden": hidden[None, :20],
                "prompts": prompts[kept],
            },
            "audio_resample": {
                "pcm16k": resampled,
                "nsamples": len(resampled),
                "count": len(of_resampled),
                "prompts_first": of_resampled[2],
            },
            "audio_long": {
                "nsamples": len(long),
                "idx_25": np.array(seam),
                "prompts_25": windows[seam].astype(np.float16),
            },
        },
        prompts,
        len(long),
    )


class _AudioEncoder:
    def __init__(self, models: Path) -> None:
        self.extractor = WhisperFeatureExtractor()
        self.encoder = WhisperModel.from_pretrained(
            models / "whisper", use_safetensors=False
        ).encoder.eval()

    def mel(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        features = self.extractor(sound, sampling_rate=RATE, return_tensors="np")
        mel: NDArray[np.float32] = features["input_features"]
        return mel

    def windows(
        self, sound: NDArray[np.float32], fps: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (n, 50, 384) windows and the (m, 5, 384) states (docs/reference.md §1.5)."""
        parts = [sound[at : at + 30 * RATE] for at in range(0, len(sound), 30 * RATE)]
        with torch.inference_mode():
            states = [
                self.encoder(torch.from_numpy(self.mel(part)), output_hidden_states=True)
                for part in parts
            ]
        hidden = np.concatenate([torch.stack(s.hidden_states, 2)[0].numpy() for s in states])
        trimmed = hidden[: math.floor(len(sound) / RATE * 50)]
        step = 50 / fps
        pad = math.ceil(step)
        silence = np.zeros((pad * 6, 5, 384), np.float32)
        padded = np.concatenate([silence[: pad * 2], trimmed, silence])
        starts = [math.floor(i * step) for i in range(math.floor(len(sound) / RATE * fps))]
        return np.stack([padded[at : at + 10].reshape(50, 384) for at in starts]), hidden


def _make_version(
    inputs: Inputs, version: str, prompts: NDArray[np.float32]
) -> dict[str, dict[str, Any]]:
    is_v15 = version == "v15"
    boxes = [_face_box(points, 0 if is_v15 else 5) for points in inputs.landmarks]
    if is_v15:
        boxes = [
            (x0, y0, x1, min(y1 + 10, len(frame)))
            for (x0, y0, x1, y1), frame in zip(boxes, inputs.frames, strict=True)
        ]
    crops = np.stack(
        [
            cv2.resize(frame[y0:y1, x0:x1], (256, 256), interpolation=cv2.INTER_LANCZOS4)
            for frame, (x0, y0, x1, y1) in zip(inputs.frames, boxes, strict=True)
        ]
    )
    vae = AutoencoderKL.from_pretrained(inputs.models / "sd-vae", use_safetensors=False).eval()
    sampled, mean = _encode(vae, crops, inputs.seed)
    forth_and_back = [*range(len(crops)), *reversed(range(len(crops)))]
    sources = [forth_and_back[i % len(forth_and_back)] for i in range(len(prompts))]
    placed = prompts + _positions()
    pred = _draw(_load_unet(inputs.models, version), sampled[sources], placed)
    faces = _decode(vae, pred)
    parser = _Parser(inputs.models)
    crop_boxes = [_crop_box(box) for box in boxes]
    reached = sorted(set(sources))
    first = parser.logits(inputs.frames[0], crop_boxes[0])
    labels = first.argmax(0).astype(np.uint8)
    cheeks = (90, 90) if is_v15 else (80, 80)
    own = "jaw" if is_v15 else "raw"
    idx = [0, 1, len(prompts) // 2, len(prompts) - 1]

    def masked(n: int, mode: str) -> Pixels:
        logits = parser.logits(inputs.frames[n], crop_boxes[n])
        return _replace_mask(logits.argmax(0).astype(np.uint8), mode, cheeks)

    def blended(i: int, mode: str, blur: float) -> Pixels:
        n = sources[i]
        soft = _soft_mask(masked(n, mode), boxes[n], blur)
        return _paste(inputs.frames[n], faces[i], boxes[n], soft)

    middle = reached[len(reached) // 2]
    blended_of = {own: np.stack([blended(i, own, 0.05) for i in idx])}
    if is_v15:
        blended_of |= {m: np.stack([blended(i, m, 0.05) for i in idx[:2]]) for m in ("raw", "neck")}
    made: dict[str, dict[str, Any]] = {
        "crop": {"crop256": crops[list(inputs.kept)], "vae_in_masked": _masked_input(crops[0])},
        "latents": {"sampled": sampled, "mode": mean, "seed": inputs.seed},
        "unet": {"pred": pred, "pe_added0": placed[:1]},
        "decoded": {
            "faces": faces[idx[:-1]],
            "idx": np.array(idx[:-1]),
            "mean_std": np.stack([faces.mean((1, 2, 3)), faces.std((1, 2, 3))]),
        },
        "parse": {
            "labels": labels,
            "logits64": first[:, ::16, ::16],
            "crop_box": np.array(crop_boxes[0]),
            **{mode: _replace_mask(labels, mode, cheeks) for mode in ("jaw", "raw", "neck")},
        },
        "blended": {"idx": np.array(idx), **blended_of},
        "realtime": {
            **{f"mask{n}": _soft_mask(masked(n, own), boxes[n], 0.1) for n in (0, middle)},
            **{f"box{n}": np.array(crop_boxes[n]) for n in (0, middle)},
            "blended0": blended(0, own, 0.1),
        },
    }
    if is_v15:
        columns = np.where(_cheeks(90, 90), 255, 0).astype(np.uint8)
        made["cheeks"] = {
            "kernel": _jaw_kernel(),
            "cheek_kernel": cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (35, 3)),
            "cheek_mask_row": columns,
            "jaw_40_70": _replace_mask(labels, "jaw", (40, 70)),
        }
    return {f"{version}_{name}": arrays for name, arrays in made.items()}


def _face_box(points: NDArray[np.float32], shift: int) -> Corners:
    whole = points.astype(np.int32)
    whole[29, 1] += shift
    half = whole[:, 1].max() - whole[29, 1]
    top = max(0, int(whole[29, 1] - half))
    return int(whole[:, 0].min()), top, int(whole[:, 0].max()), int(whole[:, 1].max())


def _crop_box(box: Corners) -> Corners:
    x0, y0, x1, y1 = box
    x, y, side = (x0 + x1) // 2, (y0 + y1) // 2, int(max(x1 - x0, y1 - y0) // 2 * 1.5)
    return x - side, y - side, x + side, y + side


def _vae_input(crop: Pixels, is_masked: bool) -> torch.Tensor:
    picture = torch.from_numpy((crop[:, :, ::-1] / 255.0).astype(np.float32)).permute(2, 0, 1)[None]
    if is_masked:
        picture[:, :, 128:] = 0
    return (picture - 0.5) / 0.5


def _masked_input(crop: Pixels) -> NDArray[np.float32]:
    return np.asarray(_vae_input(crop, is_masked=True)[:, :, ::4, ::4].numpy())


def _encode(vae: Any, crops: Pixels, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    torch.manual_seed(seed)
    rows: list[list[torch.Tensor]] = []
    with torch.inference_mode():
        for crop in crops:
            found = [vae.encode(_vae_input(crop, m)).latent_dist for m in (True, False)]
            rows.append([torch.cat([each.sample() for each in found], 1)])
            rows[-1].append(torch.cat([each.mode() for each in found], 1))
    sampled, mean = (torch.cat([row[at] for row in rows]) * SCALE for at in (0, 1))
    return sampled.numpy(), mean.numpy()


def _load_unet(models: Path, version: str) -> Any:
    folder, file = (
        ("musetalkV15", "unet.pth") if version == "v15" else ("musetalk", "pytorch_model.bin")
    )
    unet = UNet2DConditionModel(**json.loads((models / folder / "musetalk.json").read_text()))
    unet.load_state_dict(torch.load(models / folder / file, weights_only=True))
    return unet.eval()


def _positions() -> NDArray[np.float32]:
    place = torch.arange(50)[:, None].float()
    step = torch.exp(torch.arange(0, 384, 2).float() * (-math.log(10000.0) / 384))
    table = torch.zeros(50, 384)
    table[:, 0::2], table[:, 1::2] = torch.sin(place * step), torch.cos(place * step)
    return np.asarray(table.numpy())


def _draw(
    unet: Any, looks: NDArray[np.float32], placed: NDArray[np.float32]
) -> NDArray[np.float32]:
    with torch.inference_mode():
        drawn = [
            unet(
                torch.from_numpy(looks[at : at + 8]),
                torch.tensor([0]),
                encoder_hidden_states=torch.from_numpy(placed[at : at + 8]),
            ).sample
            for at in range(0, len(looks), 8)
        ]
    return np.asarray(torch.cat(drawn).numpy())


def _decode(vae: Any, pred: NDArray[np.float32]) -> Pixels:
    with torch.inference_mode():
        parts = [
            vae.decode(torch.from_numpy(pred[at : at + 8]) / SCALE).sample
            for at in range(0, len(pred), 8)
        ]
    pictures = (torch.cat(parts) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray((pictures * 255).round().astype(np.uint8)[..., ::-1])


class _Parser:
    def __init__(self, models: Path) -> None:
        self.network = load_parser(models / "face-parse-bisent")

    def logits(self, frame: Pixels, box: Corners) -> NDArray[np.float32]:
        """Return (19, 512, 512) of the crop box, black where that leaves the frame."""
        picture = Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1])).crop(box)
        small = picture.resize((512, 512), Image.Resampling.BILINEAR)
        with torch.inference_mode():
            return np.asarray(self.network(torch.tensor(np.asarray(small))[None])[0].numpy())


def _jaw_kernel() -> Pixels:
    kernel = np.zeros((33, 33), np.uint8)
    for row in range(10, 33):
        width = min(1 + 2 * (row - 10), 21)
        kernel[row, 16 - width // 2 : 17 + width // 2] = 1
    return kernel


def _cheeks(left: int, right: int) -> NDArray[np.bool_]:
    cheeks = np.zeros(512, bool)
    cheeks[: 256 - left + 1] = True
    cheeks[256 + right :] = True
    return cheeks


def _replace_mask(labels: Pixels, mode: str, cheeks: tuple[int, int]) -> Pixels:
    if mode != "jaw":
        parts = [1, 11, 12, 13, *([14] if mode == "neck" else [])]
        return np.where(np.isin(labels, parts), 255, 0).astype(np.uint8)
    skin = np.where(labels == 1, 255, 0).astype(np.uint8)
    lowered = cv2.dilate(skin, _jaw_kernel(), iterations=1)
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (35, 3))
    narrowed = cv2.erode(lowered, ellipse, iterations=2)
    mask = np.where(_cheeks(*cheeks), narrowed, lowered)
    mask[labels == 10] = 0
    mask[np.isin(labels, [11, 12, 13])] = 255
    return mask.astype(np.uint8)


def _soft_mask(mask: Pixels, face: Corners, blur: float) -> Pixels:
    left, top, right, bottom = _crop_box(face)
    side = right - left
    x0, y0, x1, y1 = face[0] - left, face[1] - top, face[2] - left, face[3] - top
    stretched = np.asarray(Image.fromarray(mask).resize((side, bottom - top)))
    kept = np.zeros_like(stretched)
    kept[y0:y1, x0:x1] = stretched[y0:y1, x0:x1]
    kept[: int((bottom - top) * 0.5)] = 0
    kernel = int(blur * side // 2 * 2) + 1
    return np.asarray(cv2.GaussianBlur(kept, (kernel, kernel), 0), np.uint8)


def _paste(frame: Pixels, face: Pixels, box: Corners, soft: Pixels) -> Pixels:
    x0, y0, x1, y1 = box
    crop = _crop_box(box)
    drawn = cv2.resize(face, (x1 - x0, y1 - y0))
    body = Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))
    large = body.crop(crop)
    large.paste(Image.fromarray(drawn[:, :, ::-1].copy()), (x0 - crop[0], y0 - crop[1]))
    body.paste(large, crop[:2], Image.fromarray(soft))
    return np.ascontiguousarray(np.asarray(body)[:, :, ::-1])


def _to_16k(sound: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Resample as librosa does, its length included."""
    if rate == RATE:
        return sound
    resampled = soxr.resample(sound, rate, RATE, quality="HQ")
    length = math.ceil(len(sound) * (RATE / rate))
    fixed: NDArray[np.float32] = np.pad(resampled, (0, max(0, length - len(resampled))))[:length]
    return fixed


def _load(path: Path) -> NDArray[np.float32]:
    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return _to_16k(sound.T.mean(axis=0), rate)
