"""Sound in its two forms, whatever it came in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from media_clips import ffmpeg
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import SpeechAudio
from musetalk_pipeline.errors import AudioTooShort, InvalidAudio
from musetalk_pipeline.media.containers import WAV, plain_wav
from musetalk_pipeline.media.media_file import read_header
from musetalk_pipeline.media.speech_audio import BLOCK_FRAMES, make_track, open_audio
from musetalk_pipeline.options import MediaLimits

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def samples(audio: SpeechAudio) -> NDArray[np.float32]:
    pcm = np.fromfile(audio.pcm_path, "<f4")
    assert len(pcm) == audio.n_samples and audio.duration_s == audio.n_samples / 16_000
    return pcm


def librosa_load(path: Path) -> NDArray[np.float32]:
    """Return what `librosa.load(path, sr=16000)` gives: the mean, soxr HQ, ceil(n * ratio) long."""
    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = np.mean(sound.T, axis=0)
    if rate == 16_000:
        return mono
    out = soxr.resample(mono, rate, 16_000, quality="HQ")
    length = int(np.ceil(len(mono) * 16_000 / rate))
    return np.pad(out, (0, max(0, length - len(out))))[:length].astype(np.float32)


def track_fields(audio: SpeechAudio) -> list[str]:
    command = ["ffprobe", "-v", "error", "-show_entries", "stream=codec_name,sample_rate,channels"]
    done = subprocess.run(
        [*command, "-of", "csv=p=0", audio.track_path], capture_output=True, timeout=60, check=True
    )
    return done.stdout.decode().strip().split(",")


def noise_file(path: Path, seconds: float, rate: int, channels: int, subtype: str) -> Path:
    chance = np.random.default_rng(rate)
    sound = chance.normal(0, 0.1, (int(seconds * rate), channels))
    soundfile.write(path, sound, rate, subtype=subtype)
    return path


@pytest.mark.parametrize(
    ("rate", "channels", "subtype", "name"),
    [
        (8000, 1, "PCM_16", "telephone.wav"),
        (96_000, 6, "PCM_24", "surround.wav"),
        (22_050, 2, "PCM_16", "stereo.wav"),
        (16_000, 1, "FLOAT", "ready.wav"),
        (44_100, 2, "PCM_16", "music.flac"),
        (48_000, 1, "PCM_U8", "coarse.wav"),
        (11_025, 2, "PCM_16", "old.aiff"),
    ],
)
def test_samples_equal_librosas(
    rate: int, channels: int, subtype: str, name: str, tmp_path: Path
) -> None:
    path = noise_file(tmp_path / name, 1.313, rate, channels, subtype)
    audio = open_audio(path, tmp_path, MediaLimits())
    pcm, expected = samples(audio), librosa_load(path)
    assert len(pcm) == len(expected)
    # Up to two channels bit for bit; the sum of six may be rounded in another order.
    assert np.abs(pcm - expected).max() <= (0 if channels <= 2 else 1e-6)
    track_rate = rate if rate == 44_100 else 48_000
    assert track_fields(audio) == ["aac", str(track_rate), str(min(2, channels))]


def test_a_plain_header_is_read_as_ffprobe_reads_it(tmp_path: Path) -> None:
    path = noise_file(tmp_path / "speech.wav", 1.313, 22_050, 1, "PCM_16")
    content = path.read_bytes()
    found = plain_wav(content[:4096], len(content))
    [stream] = read_header(path, WAV, InvalidAudio).streams
    assert found is not None
    assert found == {name: stream[name] for name in found}


@pytest.mark.parametrize(
    ("channels", "subtype", "missing"),
    [(2, "PCM_16", 0), (1, "PCM_24", 0), (1, "FLOAT", 0), (1, "PCM_16", 1)],
)
def test_any_other_header_is_left_to_ffprobe(
    channels: int, subtype: str, missing: int, tmp_path: Path
) -> None:
    content = noise_file(tmp_path / "a.wav", 0.1, 16_000, channels, subtype).read_bytes()
    assert plain_wav(content[:4096], len(content) - missing) is None
    assert plain_wav(content[: 44 - 1], 43) is None


def test_many_blocks_join_without_a_seam(tmp_path: Path) -> None:
    path = noise_file(tmp_path / "long.wav", 4.5 * BLOCK_FRAMES / 44_100, 44_100, 1, "PCM_16")
    assert np.array_equal(samples(open_audio(path, tmp_path, MediaLimits())), librosa_load(path))


@pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="needs ../shared/golden")
def test_the_golden_samples_are_reproduced_exactly(tmp_path: Path) -> None:
    golden = np.load(SHARED / "golden" / "audio_resample.npz")["pcm16k"]
    audio = open_audio(SHARED / "golden" / "stereo22k.wav", tmp_path, MediaLimits())
    assert np.array_equal(samples(audio), golden)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp3", "mp3"), ("a.m4a", "aac"), ("a.ogg", "libvorbis"), ("a.opus", "libopus"),
     ("a.mka", "flac"), ("a.ts", "mp2"), ("a.wma", "wmav2"), ("a.caf", "pcm_s16be")],
)  # fmt: skip
def test_common_formats(name: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / name
    ffmpeg("-f", "lavfi", "-i", "sine=f=440:d=2:r=48000", "-c:a", codec, path)
    pcm = samples(open_audio(path, tmp_path, MediaLimits()))
    assert abs(len(pcm) - 32_000) < 16_000 * 0.1
    spectrum = np.abs(np.fft.rfft(pcm[4000:20_000]))
    assert spectrum.argmax() == 440  # one bin per hertz


def test_the_sound_of_a_video_begins_at_its_first_sample(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    picture = ("-f", "lavfi", "-i", "color=s=64x48:d=2")
    ffmpeg(*picture, "-itsoffset", "0.5", "-f", "lavfi", "-i", "sine=d=1", "-c:a", "flac", path)
    audio = open_audio(path, tmp_path, MediaLimits())
    assert audio.n_samples == 16_000
    assert np.abs(samples(audio)[:400]).max() > 0.05


def test_both_forms_hold_the_same_sound(tmp_path: Path) -> None:
    """A click is at the same instant in the samples and in the decoded track."""
    sound = np.zeros(48_000, np.float32)
    sound[24_000] = 0.9
    soundfile.write(tmp_path / "click.wav", sound, 48_000, subtype="FLOAT")
    audio = open_audio(tmp_path / "click.wav", tmp_path, MediaLimits())
    raw = ffmpeg("-i", audio.track_path, "-f", "f32le", "-ar", "48000", "-ac", "1", "pipe:1")
    track = np.frombuffer(raw, "<f4")
    assert abs(int(np.abs(samples(audio)).argmax()) - 8000) <= 1
    assert abs(int(np.abs(track).argmax()) - 24_000) <= 24  # half a millisecond
    assert len(track) >= len(sound)


def test_a_track_that_is_made_later_is_the_same_file(tmp_path: Path) -> None:
    path = noise_file(tmp_path / "noise.wav", 1.5, 22_050, 2, "PCM_16")
    at_once = open_audio(path, tmp_path, MediaLimits())
    (tmp_path / "later").mkdir()
    later = open_audio(path, tmp_path / "later", MediaLimits(), track_within_s=1.0)
    assert not later.track_path.exists()
    np.testing.assert_array_equal(samples(later), samples(at_once))
    make_track(later, MediaLimits())
    assert later.track_path.read_bytes() == at_once.track_path.read_bytes()
    made = later.track_path.stat()
    make_track(later, MediaLimits())  # it is there
    assert later.track_path.stat() == made


def test_what_is_not_a_number_becomes_silence(tmp_path: Path) -> None:
    sound = np.full(16_000, np.nan, np.float32)
    sound[:4000] = 0.25
    sound[9000] = np.inf
    soundfile.write(tmp_path / "nan.wav", sound, 16_000, subtype="FLOAT")
    pcm = samples(open_audio(tmp_path / "nan.wav", tmp_path, MediaLimits()))
    assert np.isfinite(pcm).all() and pcm[9000] == 1 and pcm[8000] == 0 and pcm[100] == 0.25


def test_80_ms_is_enough_and_less_is_not(tmp_path: Path) -> None:
    enough = noise_file(tmp_path / "enough.wav", 0.08, 16_000, 1, "PCM_16")
    assert open_audio(enough, tmp_path, MediaLimits()).n_samples == 1280
    short = noise_file(tmp_path / "short.wav", 0.0799, 16_000, 1, "PCM_16")
    with pytest.raises(AudioTooShort, match="79 ms"):
        open_audio(short, tmp_path, MediaLimits())


def test_a_little_missing_is_forgiven_and_much_is_not(tmp_path: Path) -> None:
    whole = noise_file(tmp_path / "whole.wav", 10, 16_000, 1, "PCM_16").read_bytes()
    (tmp_path / "little.wav").write_bytes(whole[: int(len(whole) * 0.95)])
    (tmp_path / "much.wav").write_bytes(whole[: int(len(whole) * 0.8)])
    audio = open_audio(tmp_path / "little.wav", tmp_path, MediaLimits())
    assert 150_000 < audio.n_samples < 153_000
    with pytest.raises(InvalidAudio, match=r"cut off.*10\.0 s.*8\.0 s"):
        open_audio(tmp_path / "much.wav", tmp_path, MediaLimits())


def test_a_wav_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    data = noise_file(tmp_path / "a.wav", 1, 16_000, 1, "PCM_16").read_bytes()
    place = data.index(b"data") + 4
    (tmp_path / "b.wav").write_bytes(data[:place] + b"\xff" * 4 + data[place + 4 :])
    assert open_audio(tmp_path / "b.wav", tmp_path, MediaLimits()).n_samples == 16_000
