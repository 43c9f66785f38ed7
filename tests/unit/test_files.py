"""Files are complete under their name or absent, and private ones are this user's alone."""

import stat

import pytest

from musetalk_pipeline.files import create_private, part_name, replacing, write_atomically


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    target = tmp_path / "video.mp4"
    with replacing(target) as part:
        part.write_bytes(b"half")
        assert not target.exists()
        part.write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]
    assert target.read_bytes() == b"whole"


def test_a_failure_leaves_what_was_there(tmp_path):
    target = tmp_path / "video.mp4"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="full"), replacing(target) as part:
        part.write_bytes(b"half")
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]
    assert target.read_bytes() == b"old"


def test_temporary_names_differ_and_are_hidden(tmp_path):
    names = {part_name(tmp_path / "a.mp4").name for _ in range(50)}
    assert len(names) == 50
    assert all(name.startswith(".a.mp4.") and name.endswith(".part") for name in names)


def test_a_state_file_is_private_and_whole(tmp_path):
    path = tmp_path / "claim.json"
    (tmp_path / "claim.json.part").write_text("what a killed writer left")
    write_atomically(path, "ä")
    write_atomically(path, "ö")
    assert [file.name for file in tmp_path.iterdir()] == ["claim.json"]
    assert path.read_text() == "ö"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_private_file_is_never_one_that_was_there(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        create_private(tmp_path / "link")
