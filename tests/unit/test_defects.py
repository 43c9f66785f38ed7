"""Defects of the reference that have no better home, and the table that lists them all.

Each test tells what went wrong there (docs/reference.md §4); docs/fidelity.md names the test of
every row.
"""

from __future__ import annotations

import ast
import re
from dataclasses import FrozenInstanceError, fields
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from musetalk_pipeline.artifacts import ColourTags
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.engines import choose_engine
from musetalk_pipeline.faces import Landmarks
from musetalk_pipeline.faces.face_boxes import face_of
from musetalk_pipeline.media.probe import probe_video
from musetalk_pipeline.options import EncodeOptions, FaceOptions, JobOptions, MediaLimits, Version
from musetalk_pipeline.pipeline import run
from musetalk_pipeline.pixels.blend import paste_face, soft_mask
from musetalk_pipeline.pixels.crops import face_crop
from musetalk_pipeline.plan import plan_frames
from musetalk_pipeline.weights.manifest import published
from serve_app.config.settings import AppArgs
from serve_app.contract.requests import Params

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "musetalk_pipeline"
NOT_THE_ENGINES = "dwpose/"  # without it landmarks are found by the embedded network
LOSSLESS = JobOptions(encode=EncodeOptions(crf=0, preset="ultrafast"))


def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in sorted(PACKAGE.rglob("*.py"))]


def imported() -> set[str]:
    """The top-level modules that the package imports anywhere, also inside functions."""
    found = set()
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found


def touch_all(models: Path, version: Version) -> list[str]:
    """Make every published file that the engine loads, empty; return their names."""
    names = [file.path for file in published(version) if not file.path.startswith(NOT_THE_ENGINES)]
    for name in names:
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).touch()
    return names


def test_every_frame_is_written_the_last_one_too():
    """Q5: the realtime script's loop ended at N-1."""
    for n_output in (1, 2, 10, 50, 51):
        plan = plan_frames(10, n_output, Fraction(25))
        assert sum(len(segment) for segment in plan.segments) == n_output


def test_a_face_over_the_edge_goes_back_where_it_came_from():
    """Q13: the crop was clipped at the frame, the paste was not, so the face grew."""
    rng = np.random.default_rng(5)
    frame = np.kron(rng.integers(0, 256, (15, 20, 3)), np.ones((32, 32, 1))).astype(np.uint8)
    points = np.full((68, 2), (620, 300), np.float32)
    points[0], points[16], points[8] = (560, 300), (700, 300), (630, 400)
    face = face_of(Landmarks(points, 1.0), 640, 480, FaceOptions())
    assert face is not None and face.box.x1 == 640
    mask = soft_mask(np.full((512, 512), 255, np.uint8), face.box, 0.05)
    assert mask is not None
    pasted = frame.copy()
    paste_face(pasted, Box(0, 0, 640, 480), face_crop(frame, face.box), face.box, mask)
    # Cut out and put back unchanged, the picture is what it was, but for resampling.
    assert np.abs(pasted.astype(int) - frame).mean() < 0.5


def test_the_picture_is_encoded_once(clip, speech, tmp_path, tools):
    """Q15: two lossy encodes. Through a lossless encoder, untouched frames come out exactly."""
    video = clip(frames=10, faceless=frozenset({0, 1, 2, 3, 4}))
    run(video, speech(0.4), tmp_path / "out.mp4", LOSSLESS, tools)
    with av.open(str(video)) as before, av.open(str(tmp_path / "out.mp4")) as after:
        pairs = zip(before.decode(video=0), after.decode(video=0), strict=True)
        same = [np.array_equal(a.to_ndarray(), b.to_ndarray()) for a, b in pairs]
    assert same[:5] == [True] * 5


@pytest.mark.parametrize(
    ("space", "colours"), [("bt709", "bt709"), ("smpte170m", "smpte170m"), ("bt470bg", "bt470bg")]
)
def test_colours_keep_their_matrix_and_their_tags(clip, speech, tmp_path, tools, space, colours):
    """Q16: BT.709 pictures left as untagged BT.601, and looked wrong by 9.6 of 255."""
    tags = ("-colorspace", space, "-color_primaries", colours, "-color_trc", "bt709")
    more = ("-color_range", "tv", "-vf", "format=yuv420p")
    video = clip(frames=6, ffmpeg_output=(*tags, *more))
    run(video, speech(0.24), tmp_path / "out.mp4", LOSSLESS, tools)
    source = probe_video(video, MediaLimits(), tmp_path)
    made = probe_video(tmp_path / "out.mp4", MediaLimits(), tmp_path)
    assert made.colour == source.colour == ColourTags(space, "tv", colours, "bt709")
    with av.open(str(video)) as before, av.open(str(tmp_path / "out.mp4")) as after:
        for a, b in zip(before.decode(video=0), after.decode(video=0), strict=True):
            one, other = a.to_ndarray().astype(int), b.to_ndarray().astype(int)
            # A wrong matrix anywhere would shift the whole redrawn part, mouth or not.
            assert (one != other).mean() < 0.06
            assert abs(one.mean() - other.mean()) < 0.3


def test_names_are_never_read_by_a_shell(clip, speech, tmp_path, tools):
    """Q17: paths went unquoted into `os.system`: a file's name could run a command."""
    odd = tmp_path / "a b;touch $(HOME)'\"&`x`"
    odd.mkdir()
    video = odd / "-i concat:x|y.mp4"
    video.write_bytes(clip(frames=6).read_bytes())
    out = odd / "%08d;out.mp4"
    run(video, speech(0.24), out, LOSSLESS, tools)
    assert sorted(odd.iterdir()) == sorted([video, out])
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "shell":
                pytest.fail(f"{path} starts a shell")
            if isinstance(node, ast.Attribute) and node.attr in ("system", "popen"):
                pytest.fail(f"{path} starts a shell")


def test_jobs_do_not_share_folders(clip, speech, tmp_path, tools):
    """Q18, Q19, Q32: caches and results by file stem, and a fixed `temp.mp4`."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, fields_of_clip in ((one, {"frames": 6}), (other, {"frames": 6, "width": 480})):
        folder.mkdir()
        (folder / "same.mp4").write_bytes(clip(**fields_of_clip).read_bytes())
    for folder in (one, other):
        run(folder / "same.mp4", speech(0.24), folder / "out.mp4", LOSSLESS, tools)
    sizes = []
    for folder in (one, other):
        assert sorted(p.name for p in folder.iterdir()) == ["out.mp4", "same.mp4"]
        with av.open(str(folder / "out.mp4")) as container:
            sizes.append(container.streams.video[0].width)
    assert sizes == [320, 480]


def test_options_cannot_leak_from_one_job_into_the_next():
    """Q20: the result name of one task stayed in force for all that followed."""
    options = JobOptions()
    for field in fields(options):
        part = getattr(options, field.name)
        name = fields(part)[0].name
        with pytest.raises((FrozenInstanceError, AttributeError)):
            setattr(part, name, "changed")
    assert JobOptions() == options


def test_defaults_name_what_exists(tmp_path):
    """Q22: default arguments named files that were not there; v1 weights ran as v1.5."""
    assert choose_engine("auto", None) == "warp"
    assert choose_engine("auto", tmp_path) == "warp"
    assert choose_engine("musetalk", tmp_path) == "musetalk"  # asked for: then it fails and says so
    touch_all(tmp_path, "v1")
    assert choose_engine("auto", tmp_path, "v15") == "warp"
    assert choose_engine("auto", tmp_path, "v1") == "musetalk"


@pytest.mark.parametrize("version", ["v15", "v1"])
def test_every_weight_file_is_looked_for(tmp_path, caplog, version):
    """Q34: a duplicate dictionary key hid the UNet from the check."""
    names = touch_all(tmp_path, version)
    assert choose_engine("auto", tmp_path, version) == "musetalk"
    assert not caplog.messages
    for name in names:
        caplog.clear()
        # As a fetch that was interrupted leaves it.
        (tmp_path / name).rename(tmp_path / f"{name}.part")
        assert choose_engine("auto", tmp_path, version) == "warp", name
        [warning] = caplog.messages
        command = f"lipsync weights fetch --version {version}"
        assert f" {name} " in warning and command in warning
        (tmp_path / f"{name}.part").rename(tmp_path / name)
    assert choose_engine("auto", tmp_path, version) == "musetalk"


def test_a_folder_without_any_weight_needs_no_warning(tmp_path, caplog):
    (tmp_path / "sd-vae").mkdir()
    assert choose_engine("auto", tmp_path) == "warp"
    assert not caplog.messages


def test_a_unet_of_ones_own_stands_in_for_the_published_file_alone(tmp_path):
    own = tmp_path / "own.pth"
    touch_all(tmp_path, "v15")
    (tmp_path / "musetalkV15/unet.pth").unlink()
    assert choose_engine("auto", tmp_path) == "warp"
    assert choose_engine("auto", tmp_path, unet_weights=own) == "musetalk"
    (tmp_path / "whisper/pytorch_model.bin").unlink()
    assert choose_engine("auto", tmp_path, unet_weights=own) == "warp"


def test_the_library_neither_asks_nor_exits():
    """Q8, Q23: `input()` in a service, `exit()` in a library."""
    for path, tree in trees():
        # What a person starts may end with a code.
        is_command = '__name__ == "__main__"' in path.read_text()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("input", "exit", "quit"), path
            if not is_command and isinstance(node, ast.Attribute):
                assert node.attr not in ("exit", "_exit"), path
            if not is_command and isinstance(node, ast.Name):
                assert node.id != "SystemExit", path


def test_moviepy_and_imageio_are_not_needed():
    """Q33: `moviepy.editor` is gone in moviepy 2."""
    assert not imported() & {"moviepy", "imageio", "gradio", "librosa", "tensorflow", "torchvision"}


def items(section: str) -> dict[int, str]:
    """Return the entries of a list in docs/fidelity.md, each on one line, by number."""
    text = (ROOT / "docs" / "fidelity.md").read_text().partition(f"\n## {section}")[2]
    entries = re.split(r"^- \*\*Q(\d+)\*\* ", text.partition("\n\n## ")[0], flags=re.MULTILINE)[1:]
    texts = (entry.partition("\n\n")[0] for entry in entries[1::2])
    return {int(n): " ".join(text.split()) for n, text in zip(entries[::2], texts, strict=True)}


def rows() -> dict[int, list[str]]:
    """The tests that docs/fidelity.md names, by the defect's number."""
    defects = items("Every defect").items()
    return {number: re.findall(r"tests/[\w/]+\.py::\w+", text) for number, text in defects}


def policies() -> dict[int, list[str]]:
    """Reference, default, others and reason of each policy, by number."""
    labels = "Reference: (.+) Default: (.+) Others: (.+) Why: (.+)"
    found = {number: re.fullmatch(labels, text) for number, text in items("Policies").items()}
    assert None not in found.values(), found
    return {number: list(match.groups()) for number, match in found.items() if match}


def test_every_policy_is_an_option_with_its_default_and_a_reason():
    """Policies by the specification's list; names and defaults by the code."""
    table, defects = policies(), items("Every defect")
    verdicts = {number for number, text in defects.items() if text.startswith("policy `")}
    assert set(table) == verdicts == {1, 7, 10, 11, 12, 13, 24, 25, 27, 28, 39}
    chosen = JobOptions()
    defaults = {
        option.name: getattr(getattr(chosen, part.name), option.name)
        for part in fields(JobOptions)
        for option in fields(getattr(chosen, part.name))
        if option.name in Params.model_fields
    }
    defaults |= {name: field.default for name, field in AppArgs.model_fields.items()}
    for number, (reference, option, others, reason) in table.items():
        assert reference and others and reason, f"Q{number} has an empty cell"
        found = re.match(r"\W*(\w+): ([\w.]+)`", option)
        assert found is not None, f"Q{number} names no option"
        name, value = found.groups()
        assert str(defaults[name]).lower() in (value, f"{value}.0"), f"Q{number}: {name}"
        assert ("*deployment*" in option) == (name not in Params.model_fields), f"Q{number}"


def test_the_table_has_every_row_and_names_tests_that_exist():
    table = rows()
    assert sorted(table) == list(range(1, 43))
    for row, tests in table.items():
        assert tests, f"Q{row} names no test"
        for name in tests:
            file, _, function = name.partition("::")
            path = ROOT / file
            assert path.is_file(), f"Q{row}: {file} does not exist"
            assert re.search(rf"def {function}\b", path.read_text()), f"Q{row}: {name} is missing"
