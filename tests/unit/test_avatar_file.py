"""Blocks of avatars in files, and what makes two avatars the same."""

from __future__ import annotations

from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from musetalk_pipeline.artifacts import AvatarBlock, ColourTags, Face, Picture, in_rows
from musetalk_pipeline.avatars.block_file import (
    APPEARANCES,
    DIGEST_BYTES,
    MAGIC,
    DamagedFileError,
    pack_block,
    seal,
    unpack_block,
    unseal,
)
from musetalk_pipeline.avatars.identity import (
    IN_IDENTITY,
    NOT_IN_IDENTITY,
    AvatarTools,
    avatar_id,
    block_name,
    longer_block,
)
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.face_choice import FaceAtBox, FaceAtPoint
from musetalk_pipeline.option_spec import options_of
from musetalk_pipeline.options import JOB_PARTS, JobOptions
from musetalk_pipeline.plan import Block, plan_frames
from musetalk_pipeline.track import Span, Track

TOOLS = AvatarTools("warp", "2", "mesh", "landmarks", None, "frame")
PICTURE = Picture(1280, 720, 1280, 720, 0, 0, None, ColourTags())
PLAN = plan_frames(250, 250, Fraction(25))


def made_block(
    start: int = 50, present: tuple[int, ...] = (True, False, True), kind: str = "uint8"
) -> AvatarBlock:
    """Return a block with so many faces in each frame, whose numbers all differ."""
    rng = np.random.default_rng(start)

    def made(others: tuple[Face, ...] = ()) -> Face:
        box = Box(*map(int, rng.integers(-50, 2000, 4)))
        points = rng.normal(size=(68, 2)).astype(np.float32)
        return Face(points, box, float(rng.random()), others)

    faces = tuple(
        made(tuple(made() for _ in range(count - 1))) if count else None for count in present
    )
    count = sum(present)
    look = (rng.random((count, *APPEARANCES[kind])) * 255).astype(kind)
    masks = rng.integers(0, 256, (count, 32768)).astype(np.uint8)
    return AvatarBlock(Block(3, start, start + len(present)), faces, look, masks)


def assert_same(one: AvatarBlock, other: AvatarBlock) -> None:
    assert one.block == other.block
    assert len(one.faces) == len(other.faces)
    for of_one, of_other in zip(one.faces, other.faces, strict=True):
        for a, b in zip(in_rows([of_one]), in_rows([of_other]), strict=True):
            assert (a.box, a.score) == (b.box, b.score)
            np.testing.assert_array_equal(a.points, b.points)
    for array, kept in ((one.appearance, other.appearance), (one.masks, other.masks)):
        assert array.dtype == kept.dtype
        np.testing.assert_array_equal(array, kept)


@given(
    start=st.integers(0, 90_000),
    present=st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple),
    kind=st.sampled_from(sorted(APPEARANCES)),
)
def test_a_block_comes_back_as_it_was_written(
    start: int, present: tuple[int, ...], kind: str
) -> None:
    block = made_block(start, present, kind)
    assert_same(unpack_block(pack_block(block), block.block), block)


def test_a_block_gets_the_index_that_it_has_in_the_job_that_reads_it() -> None:
    block = made_block()
    moved = replace(block.block, index=7)
    assert unpack_block(pack_block(block), moved).block == moved


@given(data=st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    content = bytearray(pack_block(made_block(present=(True,), kind="float32")))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedFileError):
        unpack_block(bytes(content), Block(3, 50, 51))


@given(kept=st.integers(0, 70_000))
def test_a_file_that_is_cut_off_is_noticed(kept: int) -> None:
    content = pack_block(made_block(present=(True,), kind="float32"))
    with pytest.raises(DamagedFileError):
        unpack_block(content[: min(kept, len(content) - 1)], Block(3, 50, 51))


@given(payload=st.binary(max_size=200))
def test_bytes_that_are_no_block_are_refused_even_if_their_digest_is_right(payload: bytes) -> None:
    assert unseal(seal(payload)) == payload
    with pytest.raises(DamagedFileError):
        unpack_block(seal(payload), Block(0, 0, 1))


@pytest.mark.parametrize("asked", [Block(3, 51, 54), Block(3, 50, 52), Block(3, 50, 54)])
def test_other_frames_than_those_that_were_written_are_refused(asked: Block) -> None:
    with pytest.raises(DamagedFileError):
        unpack_block(pack_block(made_block()), asked)


@pytest.mark.parametrize("name", ["present", "points", "boxes", "scores", "appearance", "masks"])
def test_an_array_of_another_shape_or_type_is_refused(name: str) -> None:
    block = made_block()
    arrays = load(pack_block(block)[len(MAGIC) + DIGEST_BYTES :])
    for wrong in (arrays[name][:1], arrays[name].astype(np.float16)):
        with pytest.raises(DamagedFileError):
            unpack_block(seal(save({**arrays, name: np.ascontiguousarray(wrong)})), block.block)
    del arrays[name]
    with pytest.raises(DamagedFileError):
        unpack_block(seal(save(arrays)), block.block)


def test_every_option_of_a_job_is_in_the_identity_or_known_not_to_matter() -> None:
    for part in JOB_PARTS:
        names = {field.name for field in fields(part)}
        matter = IN_IDENTITY.get(part, frozenset())
        others = NOT_IN_IDENTITY.get(part, frozenset())
        assert matter | others == names
        assert not matter & others


def _another(kind: object, default: object) -> object:
    """Return another value of an option's type than its default."""
    if default == "largest":
        return FaceAtPoint((10, 20), 3)
    choices = getattr(kind, "__args__", ())
    if choices:
        return next(choice for choice in choices if choice != default)
    if kind is bool:
        return not default
    return {int: 7, float: 0.3, str: "640x360"}[kind]  # type: ignore[index]


@pytest.mark.parametrize(
    ("part", "name"),
    [(part, option.name) for part in JOB_PARTS for option in options_of(part)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_an_option_changes_the_identity_if_and_only_if_it_is_in_it(part: type, name: str) -> None:
    [option] = [each for each in options_of(part) if each.name == name]
    changed = JobOptions().with_choices({name: _another(option.kind, option.default)})
    assert changed != JobOptions()
    is_same = avatar_id("aa", changed, TOOLS) == avatar_id("aa", JobOptions(), TOOLS)
    assert is_same == (name not in IN_IDENTITY.get(part, ()))


def test_every_choice_of_a_face_is_an_avatar_of_its_own() -> None:
    choices = ["all", FaceAtPoint((1, 2)), FaceAtPoint((1, 2), 1), FaceAtBox((1, 2, 3, 4))]
    made = [JobOptions().with_choices({"face": choice}) for choice in choices]
    assert len({avatar_id("aa", options, TOOLS) for options in [JobOptions(), *made]}) == 5
    # That of a job that chooses nothing, from before there was a choice.
    assert avatar_id("aa", JobOptions(), TOOLS) == "274bc6738530a08ecbb9889e60dda0cc"


def test_a_block_of_a_person_is_named_by_where_they_are_in_it() -> None:
    """How the person is followed beyond a block does not matter to it."""
    first, later = Span(0, 60, (0,), (Box(0, 0, 9, 9),)), Span(90, 95, (90,), (Box(1, 1, 9, 9),))
    tracks = [None, Track((first,)), Track((first, later)), Track((later,))]
    names = [block_name(PLAN.blocks[1], PLAN, PICTURE, JobOptions(), track) for track in tracks]
    assert len(set(names)) == 4
    begun = [block_name(PLAN.blocks[0], PLAN, PICTURE, JobOptions(), track) for track in tracks]
    assert begun[1] == begun[2] and len(set(begun)) == 3


@pytest.mark.parametrize("field", [field.name for field in fields(AvatarTools)])
def test_every_tool_and_the_video_change_the_identity(field: str) -> None:
    other = {"presence_interval": 3, "seed": 1, "precisions": ("float16",), "files": (("a", "b"),)}
    changed = replace(TOOLS, **{field: other.get(field, "another")})  # type: ignore[arg-type]
    assert avatar_id("aa", JobOptions(), changed) != avatar_id("aa", JobOptions(), TOOLS)
    assert avatar_id("ab", JobOptions(), TOOLS) != avatar_id("aa", JobOptions(), TOOLS)


def test_a_block_has_one_name_however_long_the_sound_is_unless_its_faces_depend_on_it() -> None:
    longer, shorter = PLAN, plan_frames(250, 130, Fraction(25))
    same = [block_name(plan.blocks[1], plan, PICTURE, JobOptions()) for plan in (longer, shorter)]
    assert same[0] == same[1]
    last = [block_name(plan.blocks[2], plan, PICTURE, JobOptions()) for plan in (longer, shorter)]
    assert last[0] != last[1]  # it ends where the sound does
    smooth = JobOptions().with_choices({"box_smoothing": 6})
    ending = plan_frames(250, 104, Fraction(25))
    names = {block_name(plan.blocks[1], plan, PICTURE, smooth) for plan in (longer, ending)}
    assert len(names) == 2  # two frames beyond its end are averaged in one of them only
    cropped = replace(PICTURE, crop=Box(2, 0, 1280, 720))
    assert block_name(PLAN.blocks[1], PLAN, cropped, JobOptions()) != same[0]


def names_of(n_output: int, options: JobOptions | None = None) -> list[str]:
    """Return the names of the blocks of a job of so many frames."""
    options = options or JobOptions()
    plan = plan_frames(250, n_output, Fraction(25))
    return [block_name(block, plan, PICTURE, options) for block in plan.blocks]


def test_a_block_that_the_sound_cuts_begins_a_longer_one() -> None:
    plan = plan_frames(250, 130, Fraction(25))
    last = plan.blocks[-1]
    names = [*names_of(250), *names_of(140), *names_of(110)]
    assert longer_block(names, last, plan, PICTURE, JobOptions(), TOOLS) == (
        names_of(140)[-1],
        Block(2, 100, 140),
    )
    assert longer_block(names_of(110), last, plan, PICTURE, JobOptions(), TOOLS) is None
    other = replace(PICTURE, width=640)
    assert longer_block(names, last, plan, other, JobOptions(), TOOLS) is None


def test_a_block_whose_faces_depend_on_later_frames_begins_no_longer_one() -> None:
    plan = plan_frames(250, 130, Fraction(25))
    smooth = JobOptions().with_choices({"box_smoothing": 2})
    names = names_of(250, smooth)
    assert longer_block(names, plan.blocks[-1], plan, PICTURE, smooth, TOOLS) is None
    chosen = JobOptions().with_choices({"face": FaceAtPoint((1, 2))})
    assert longer_block(names_of(250), plan.blocks[-1], plan, PICTURE, chosen, TOOLS) is None
    by_s3fd = replace(TOOLS, face_presence="s3fd", presence_interval=12)
    names = names_of(250)
    assert longer_block(names, plan.blocks[-1], plan, PICTURE, JobOptions(), by_s3fd) is None


@given(present=st.lists(st.integers(0, 2), min_size=2, max_size=6).map(tuple), data=st.data())
def test_the_beginning_of_a_block_has_its_rows(
    present: tuple[int, ...], data: st.DataObject
) -> None:
    whole = made_block(10, present, "float32")
    count = data.draw(st.integers(1, len(present)))
    cut = whole.first(Block(3, 10, 10 + count))
    faces = sum(present[:count])
    assert cut.faces == whole.faces[:count]
    np.testing.assert_array_equal(cut.appearance, whole.appearance[:faces])
    np.testing.assert_array_equal(cut.masks, whole.masks[:faces])
    assert len(cut.appearance) == faces
