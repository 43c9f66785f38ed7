"""The kit for a machine with a GPU and no network: what it packs, and how it runs its pieces."""

from __future__ import annotations

import json
import sys
import tarfile
import time
from pathlib import Path

import pytest

from gpu_kit.pack import HERE, PARTS, locked_versions, requirements
from gpu_kit.pieces import PIECES, WEIGHTS, Command, Piece, Place
from gpu_kit.run import Done, chosen, environment, main, results, run, unpack

FREE = Piece("free", lambda place: [], parts=())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Folders of which only that of the figures is there."""
    (tmp_path / "out").mkdir()
    return Place(tmp_path / "out", tmp_path / "kit", tmp_path / "models", "cpu")


def do(place: Place, code: str, *, limit_s: float = 60, left_s: float = 60) -> Done:
    """Run a line of Python as a piece's command."""
    command = Command("line", ("-c", code), limit_s)
    return run(command, FREE, place, time.monotonic() + left_s)


def test_its_packages_have_the_locked_versions() -> None:
    locked = locked_versions()
    wanted = [line.split("==") for part in PARTS for line in requirements(part)]
    assert {name: version for name, version in wanted} == {name: locked[name] for name, _ in wanted}
    assert len(wanted) == len({name for name, _ in wanted})
    assert {"diffusers", "av", "ray", "mediapipe"} <= set(locked)


def test_its_lists_are_in_order() -> None:
    for part in PARTS:
        lines = (HERE / f"{part}.txt").read_text().splitlines()
        names = [line for line in lines if not line.startswith("#")]
        assert names == sorted(names)


def test_a_part_is_unpacked_once(tmp_path: Path) -> None:
    module = tmp_path / "greeting.py"
    module.write_text("WORD = 'hello'\n")
    parts, kit = tmp_path / "parts", tmp_path / "kit"
    parts.mkdir()
    with tarfile.open(parts / "base.tar.xz", "w:xz") as archive:
        archive.add(module, arcname="base/site/greeting.py")
    assert unpack(parts, kit).startswith("unpacked base in ")
    assert (kit / "base" / "site" / "greeting.py").read_text() == "WORD = 'hello'\n"
    assert unpack(parts, kit) == ""


def test_a_piece_has_its_parts_first_on_its_path(place: Place) -> None:
    kit = place.kit
    path = environment(Piece("x", lambda place: [], parts=("serve", "base")), place)
    sites = path["PYTHONPATH"].split(":")[:2]
    assert sites == [str(kit / "serve" / "site"), str(kit / "base" / "site")]
    assert str(kit / "base" / "bin") in path["PATH"].split(":")[:2]


def test_a_command_runs_and_leaves_a_log(place: Place) -> None:
    assert do(place, "print('a figure')").status == "ok"
    assert (place.out / "line.log").read_text() == "a figure\n"


def test_a_failed_command_says_its_last_line(place: Place) -> None:
    done = do(place, "raise SystemExit('no such network')")
    assert (done.status, done.note) == ("failed", "exit code 1; no such network")


def test_a_command_is_stopped_at_its_limit_and_may_clean_up(place: Place) -> None:
    code = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n    signal.pause()\nexcept KeyboardInterrupt:\n    print('cleaned up')"
    )
    done = do(place, code, limit_s=2)
    assert (done.status, done.note) == ("timed out", "after 2 s")
    assert (place.out / "line.log").read_text() == "cleaned up\n"


def test_nothing_begins_when_no_time_is_left(place: Place) -> None:
    assert do(place, "", left_s=1).status == "left out"


def test_no_command_may_take_longer_than_nine_minutes(place: Place) -> None:
    assert max(c.limit_s for piece in PIECES for c in piece.commands(place)) <= 540
    with pytest.raises(ValueError, match="540 s at most"):
        Command("line", (), 541)


def test_weights_are_made_once_before_the_first_piece_that_needs_them(place: Place) -> None:
    names = [piece.name for piece in chosen(["tests", "precision", "engine"], place)]
    assert names == ["machine", "tests", "weights", "precision", "engine"]
    parser = place.models / "face-parse-bisent" / "79999_iter.pth"
    parser.parent.mkdir(parents=True)
    parser.touch()
    assert WEIGHTS not in chosen(["precision"], place)


def test_what_is_left_out_is_told_in_the_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ("--out", "--parts", "--kit")
    arguments = [word for name in folders for word in (name, str(tmp_path / name.strip("-")))]
    bundle = tmp_path / "figures.tar.gz"
    assert main(["networks", "--bundle", str(bundle), *arguments]) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {one["status"] for one in last["done"]} == {"left out"}
    assert {one["note"] for one in last["done"]} == {"the part base is not unpacked"}
    with tarfile.open(bundle) as archive:
        assert "out/summary.json" in archive.getnames()


def test_a_piece_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "'nonsense' is not one of tests, networks" in capsys.readouterr().err


def test_figures_of_all_kinds_are_gathered(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text('{"rows": []}')
    (tmp_path / "half.json").write_text('{"rows": [')  # being written
    (tmp_path / "engine.csv").write_text("50, 1000, 300.5\n100, 2000, 400\n[N/A], 1, 1\n")
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite><testcase name="a" time="1.5"/><testcase name="b" time="0">'
        '<failure message="wrong"/></testcase></testsuite></testsuites>'
    )
    found = results(tmp_path)
    assert found["engine"] == {"rows": []} and "half" not in found
    assert [one["outcome"] for one in found["tests"].values()] == ["passed", "failure"]
    use = found["gpu_use"]["engine"]
    assert (use["mean_use_percent"], use["most_memory_mib"]) == (75.0, 2000.0)


def test_it_runs_with_the_python_that_starts_it(place: Place) -> None:
    do(place, "import sys; print(sys.executable)")
    assert (place.out / "line.log").read_text().strip() == sys.executable
