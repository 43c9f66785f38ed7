"""S3FD's structure against the published file's keys, and its boxes on hand-made heads.

No trained weights and no reference arrays exist here: the arithmetic is checked by hand, the
network's plumbing with weights under which it must answer something that can be foreseen.
"""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from musetalk_pipeline.boxes import Box
from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.networks import s3fd
from musetalk_pipeline.networks.s3fd import FaceFinder, S3fd, ScoredBoxes, decode, pick_faces

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def seeded_network(seed: int = 0) -> S3fd:
    generator = torch.Generator().manual_seed(seed)
    network = S3fd().eval().requires_grad_(False)
    for parameter in network.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
        torch.nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5, generator=generator)
    return network


def silent_network() -> S3fd:
    """A network that is certain of background everywhere, but for what a test puts in."""
    network = S3fd().eval().requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    for name, parameter in network.named_parameters():
        if name.endswith("_conf.bias"):
            parameter[0] = 10
    return network


def test_keys_and_shapes_are_those_of_the_published_file() -> None:
    listing = SHARED / "checkpoints" / "s3fd.txt"
    if not listing.exists():
        pytest.skip("the list of published keys lies in ../shared")
    published = {}
    for line in listing.read_text().splitlines():
        key, _, shape = line.partition(" ")
        published[key] = ast.literal_eval(shape)
    found = {key: tuple(tensor.shape) for key, tensor in S3fd().state_dict().items()}
    assert found == published


def test_65_tensors_with_22_459_110_numbers() -> None:
    state = S3fd().state_dict()
    assert (len(state), sum(t.numel() for t in state.values())) == (65, 22_459_110)


def test_heads_have_one_cell_for_each_stride() -> None:
    with torch.inference_mode():
        heads = seeded_network()(torch.zeros(2, 3, 256, 384))
    sizes = [tuple(classes.shape) for classes, _ in heads]
    # fc6 pads by three, so from there on maps are larger than the picture over the stride.
    assert sizes[:3] == [(2, 2, 64, 96), (2, 2, 32, 48), (2, 2, 16, 24)]
    assert sizes[3:] == [(2, 2, 12, 16), (2, 2, 6, 8), (2, 2, 3, 4)]
    assert all(offsets.shape == (2, 4, *classes.shape[2:]) for classes, offsets in heads)


def test_bands_change_nothing() -> None:
    network = seeded_network()
    in_one_band = S3fd(band_rows=1000).eval()
    in_one_band.load_state_dict(network.state_dict())
    # An odd height, and neither it nor its half a whole number of bands.
    pictures = torch.randn(1, 3, 205, 64, generator=torch.Generator().manual_seed(1)) * 50
    with torch.inference_mode():
        banded, whole = network(pictures), in_one_band(pictures)
    for mine, other in zip(sum(banded, ()), sum(whole, ()), strict=True):
        largest = float(other.abs().max())
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * largest)


def test_the_trunk_is_vgg() -> None:
    """The whole trunk, written out once more in the plainest way."""
    network = seeded_network(2)
    weights = network.state_dict()
    x = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(3)) * 50

    def conv(x: torch.Tensor, name: str, **options: int) -> torch.Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    maps = []
    picture = x
    for block, depth in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)):
        for layer in range(1, depth + 1):
            x = conv(x, f"conv{block}_{layer}", padding=1).relu()
        if block >= 3:
            name = f"conv{block}_3_norm"
            length = x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10
            maps.append((name, x / length * weights[f"{name}.weight"].view(1, -1, 1, 1)))
        x = F.max_pool2d(x, 2, 2)
    x = conv(conv(x, "fc6", padding=3).relu(), "fc7").relu()
    maps.append(("fc7", x))
    x = conv(conv(x, "conv6_1").relu(), "conv6_2", stride=2, padding=1).relu()
    maps.append(("conv6_2", x))
    x = conv(conv(x, "conv7_1").relu(), "conv7_2", stride=2, padding=1).relu()
    maps.append(("conv7_2", x))
    with torch.inference_mode():
        heads = network(picture)
    for (name, x), (classes, offsets) in zip(maps, heads, strict=True):
        expected = conv(x, f"{name}_mbox_conf", padding=1)
        if name == "conv3_3_norm":  # the best of three backgrounds
            expected = torch.stack([expected[:, :3].max(1).values, expected[:, 3]], 1)
        torch.testing.assert_close(classes, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            offsets, conv(x, f"{name}_mbox_loc", padding=1), rtol=1e-4, atol=1e-4
        )


def empty_heads() -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    cells = [(64, 48), (32, 24), (16, 12), (12, 10), (6, 5), (3, 3)]
    return [(np.zeros(c, np.float32), np.zeros((4, *c), np.float32)) for c in cells]


@pytest.mark.parametrize("head", range(6))
def test_an_offset_of_zero_is_the_anchor_itself(head: int) -> None:
    heads = empty_heads()
    heads[head][0][2, 1] = 0.9
    faces = decode(heads)
    stride = 4 << head
    x, y, half = 1.5 * stride, 2.5 * stride, 2 * stride
    np.testing.assert_allclose(faces.corners, [[x - half, y - half, x + half, y + half]])
    np.testing.assert_allclose(faces.scores, [0.9])


def test_offsets_move_and_stretch_the_anchor() -> None:
    heads = empty_heads()
    heads[1][0][0, 0] = 0.9
    heads[1][1][:, 0, 0] = (2.0, -1.0, 5 * np.log(2), 0.0)  # 0.2 * 5 = 1: twice as wide
    [corners] = decode(heads).corners
    # The anchor: centre (4, 4), side 32. The centre moves by 0.1 * 32 * (2, -1).
    centre_x, centre_y = 4 + 6.4, 4 - 3.2
    np.testing.assert_allclose(
        corners, [centre_x - 32, centre_y - 16, centre_x + 32, centre_y + 16], rtol=1e-5
    )


def test_candidates_need_more_than_a_twentieth() -> None:
    heads = empty_heads()
    heads[0][0][0, 0], heads[0][0][5, 5] = 0.05, 0.051
    assert len(decode(heads).scores) == 1


def boxes(*rows: tuple[float, float, float, float, float]) -> ScoredBoxes:
    table = np.array(rows, np.float32).reshape(-1, 5)
    return ScoredBoxes(table[:, :4], table[:, 4])


def test_faces_are_certain_and_best_first() -> None:
    found = pick_faces(boxes((0, 0, 9, 9, 0.6), (50, 0, 59, 9, 0.9), (90, 0, 99, 9, 0.5)))
    np.testing.assert_allclose(found.scores, [0.9, 0.6])
    np.testing.assert_allclose(found.corners[:, 0], [50, 0])


@pytest.mark.parametrize(("shift", "kept"), [(5, 1), (6, 2)])
def test_overlap_counts_the_last_pixel(shift: int, kept: int) -> None:
    """Two squares from 0 to 9 have ten pixels a side: at 5 apart a third of them is shared."""
    found = pick_faces(boxes((0, 0, 9, 9, 0.9), (shift, 0, 9 + shift, 9, 0.8)))
    assert len(found.scores) == kept


def test_the_plus_one_decides_a_close_case() -> None:
    """Shared over joined area: 16/54 = 0.296 without the extra pixel, 25/73 = 0.342 with it."""
    found = pick_faces(boxes((0, 0, 6, 6, 0.9), (2, 2, 8, 8, 0.8)))
    assert len(found.scores) == 1


def test_a_removed_face_removes_nobody() -> None:
    found = pick_faces(boxes((0, 0, 99, 9, 0.9), (40, 0, 139, 9, 0.8), (80, 0, 179, 9, 0.7)))
    np.testing.assert_allclose(found.scores, [0.9, 0.7])


def test_no_candidates_are_no_faces() -> None:
    assert len(pick_faces(boxes()).scores) == 0


def test_a_face_is_found_where_it_is() -> None:
    """The coarsest head reacts to brightness, through a trunk that passes the red channel on."""
    network = silent_network()
    passing = [
        f"conv{block}_{layer}"
        for block, depth in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))
        for layer in range(1, depth + 1)
    ] + ["fc7", "conv6_1", "conv6_2", "conv7_1", "conv7_2"]
    for name in passing:
        weight = network.get_submodule(name).weight
        weight[0, 0, weight.shape[2] // 2, weight.shape[3] // 2] = 1
    network.fc6.weight[0, 0, 1, 1] = 1
    network.get_submodule("fc7_mbox_conf").weight[1, 0, 1, 1] = 0.2
    frame = np.zeros((320, 480, 3), np.uint8)
    frame[128:160, 256:288, 2] = 255  # red, in BGR
    box, nothing = FaceFinder(network).detect([frame, np.zeros_like(frame)])
    assert nothing is None
    # One cell of stride 32, moved by the two cells that fc6's padding adds, anchors of 128.
    assert box is not None
    assert (box.width, box.height) == (128, 128)
    assert abs((box.x0 + box.x1) / 2 - (272 + 64)) <= 32
    assert abs((box.y0 + box.y1) / 2 - (144 + 64)) <= 32


def test_channels_are_reversed_and_offset_in_the_references_order() -> None:
    seen = []

    class Recorder(S3fd):
        def forward(self, pictures: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
            seen.append(pictures.clone())
            return super().forward(pictures)

    network = Recorder().eval()
    network.load_state_dict(silent_network().state_dict())
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[..., 0], frame[..., 1], frame[..., 2] = 10, 20, 30  # blue, green, red
    assert FaceFinder(network).detect([frame]) == [None]
    assert seen[0][0, :, 5, 5].tolist() == [30 - 104, 20 - 117, 10 - 123]


def test_boxes_are_clipped_at_zero_and_truncated() -> None:
    faces = boxes((-3.7, 2.9, 700.9, 480.99, 0.9))
    assert s3fd._best_box(faces) == Box(0, 2, 700, 480)


def test_frames_of_one_size_go_through_together_and_memory_is_bounded() -> None:
    small, large = np.zeros((360, 640, 3), np.uint8), np.zeros((1080, 1920, 3), np.uint8)
    runs = [len(batch) for batch in s3fd._batches([small] * 10 + [large] * 2 + [small])]
    assert runs == [9, 1, 1, 1, 1]


def test_a_batch_answers_like_single_frames() -> None:
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 256, (96, 128, 3), np.uint8) for _ in range(3)]
    frames.append(generator.integers(0, 256, (64, 64, 3), np.uint8))
    network = seeded_network(4)
    for name, parameter in network.named_parameters():
        if "_loc" in name:  # random offsets would make boxes of a million pixels
            parameter *= 0.01
    finder = FaceFinder(network)
    together = finder.detect(frames)
    assert None not in together
    for frame, box in zip(frames, together, strict=True):
        [alone] = finder.detect([frame])
        # A corner may fall on either side of a whole pixel.
        np.testing.assert_allclose(dataclasses.astuple(box), dataclasses.astuple(alone), atol=1)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    state = S3fd().state_dict()
    del state["fc7.bias"]
    torch.save(state, tmp_path / "s3fd.pth")
    with pytest.raises(ModelLoadFailed, match=r"s3fd\.pth lacks fc7\.bias"):
        FaceFinder.load(tmp_path / "s3fd.pth")
    with pytest.raises(ModelLoadFailed, match="fetch --s3fd"):
        FaceFinder.load(tmp_path / "nothing.pth")


def test_published_files_load(tmp_path: Path) -> None:
    """The published file is a pickle of torch before 1.6."""
    path = tmp_path / "s3fd-619a316812.pth"
    torch.save(silent_network().state_dict(), path, _use_new_zipfile_serialization=False)
    assert FaceFinder.load(path).detect([np.zeros((64, 64, 3), np.uint8)]) == [None]
