"""Fetching over a real HTTP server on the loopback that can misbehave, and verifying offline."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pty
import re
import termios
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.weights.fetch import Patience, main, verify
from musetalk_pipeline.weights.manifest import FileState, WeightFile, published

pytestmark = pytest.mark.usefixtures("no_waits")
QUICK = Patience(connect_s=5, read_s=5, stall_s=60, attempts=4)
CONTENT = np.random.default_rng(5).bytes(300_000)
CONFIG = b'{"a": 1}\n'


@dataclass
class Request:
    path: str
    range: str | None


@dataclass
class Server:
    """Serves `files`; each request is handled by the next of `behaviours`, then properly."""

    files: dict[str, bytes]
    behaviours: list[Callable[[BaseHTTPRequestHandler, bytes], None]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(Request(handler.path, handler.headers.get("Range")))
        if handler.path not in self.files:
            handler.send_error(404)
            return
        behave = self.behaviours.pop(0) if self.behaviours else answer
        behave(handler, self.files[handler.path])


def answer(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Serve as Hugging Face does: whole files, or from where the client asks."""
    wanted = handler.headers.get("Range")
    start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
    if start >= len(content):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(content)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(206 if wanted else 200)
    if wanted:
        last = len(content) - 1
        handler.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    handler.wfile.write(content[start:])


def ignore_range(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    del handler.headers["Range"]
    answer(handler, content)


def cut_after(n_bytes: int) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    def behave(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:n_bytes])
        handler.close_connection = True

    return behave


def status(code: int) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    return lambda handler, _content: handler.send_error(code)


def from_another_byte(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 200000-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - 200_000))
    handler.end_headers()
    handler.wfile.write(content[200_000:])


def without_length(extra: bytes) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    """Send the content and `extra`, its end marked only by closing the connection."""

    def behave(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content + extra)
        handler.close_connection = True

    return behave


def drip(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Send so little so slowly that a client without patience must give up."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    for i in range(200):
        try:
            handler.wfile.write(content[i : i + 1])
            handler.wfile.flush()
        except OSError:  # the client has gone, as it should
            return
        time.sleep(0.02)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    state = Server(
        {"/org/net/resolve/abc/net.bin": CONTENT, "/org/net/resolve/abc/sub/c.json": CONFIG}
    )

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.handle(self)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    thread.join(timeout=10)
    http.server_close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


NET = WeightFile("net/net.bin", "org/net@abc//net.bin", len(CONTENT), sha256(CONTENT))
MANIFEST = (
    NET,
    WeightFile("net/config.json", "org/net@abc//sub/c.json", len(CONFIG), sha256(CONFIG)),
)


def fetch(
    server: Server, models: Path, manifest: tuple[WeightFile, ...] = (NET,), p: Patience = QUICK
) -> int:
    return main(["fetch", "--models", str(models), "--mirror", server.url], manifest, p)


def files_in(models: Path) -> set[str]:
    return {
        str(path.relative_to(models))
        for path in models.rglob("*")
        if path.is_file() and path.name != ".fetch.lock"
    }


def test_fetch_brings_every_file_once(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path, MANIFEST) == 0
    assert files_in(tmp_path) == {"net/net.bin", "net/config.json"}
    assert (tmp_path / "net/net.bin").read_bytes() == CONTENT
    assert len(server.requests) == 2
    assert fetch(server, tmp_path, MANIFEST) == 0
    assert len(server.requests) == 2


def test_a_bar_shows_the_file_and_how_far_it_is_where_somebody_watches(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    with open(terminal, "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        assert fetch(server, tmp_path) == 0
    shown = ""
    with contextlib.suppress(OSError), open(watched, closefd=True) as screen:
        while part := screen.read(1):  # ends in an error when the terminal is closed
            shown += part
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"net/net\.bin .*100% +300\.0/300\.0 kB", plain), plain


def test_no_bar_is_written_where_nobody_watches(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(server, tmp_path) == 0
    assert capsys.readouterr().err == ""


def test_a_cut_connection_is_continued_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.behaviours = [cut_after(100_000)]
    assert fetch(server, tmp_path) == 0
    assert (tmp_path / "net/net.bin").read_bytes() == CONTENT
    assert [request.range for request in server.requests] == [None, "bytes=100000-"]


def test_a_later_run_continues_an_earlier_one(server: Server, tmp_path: Path) -> None:
    server.behaviours = [cut_after(100_000)]
    once = Patience(attempts=1)
    assert fetch(server, tmp_path, p=once) == 1
    assert files_in(tmp_path) == {"net/net.bin.part"}
    assert fetch(server, tmp_path, p=once) == 0
    assert files_in(tmp_path) == {"net/net.bin"}
    assert server.requests[-1].range == "bytes=100000-"


@pytest.mark.parametrize("behaviour", [ignore_range, without_length(b"")])
def test_a_server_that_knows_no_ranges_sends_all_again(
    server: Server,
    tmp_path: Path,
    behaviour: Callable[[BaseHTTPRequestHandler, bytes], None],
) -> None:
    server.behaviours = [cut_after(100_000), behaviour]
    assert fetch(server, tmp_path) == 0
    assert (tmp_path / "net/net.bin").read_bytes() == CONTENT


def test_a_part_from_another_byte_is_not_used(server: Server, tmp_path: Path) -> None:
    server.behaviours = [cut_after(100_000), from_another_byte]
    assert fetch(server, tmp_path) == 0
    assert (tmp_path / "net/net.bin").read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_a_partial_file_that_is_too_long_is_begun_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/net.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(server, tmp_path) == 0
    assert (tmp_path / "net/net.bin").read_bytes() == CONTENT


def test_a_complete_partial_file_needs_no_request(server: Server, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/net.bin.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path) == 0
    assert server.requests == []
    assert files_in(tmp_path) == {"net/net.bin"}


def test_wrong_bytes_are_refused_and_deleted(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/org/net/resolve/abc/net.bin"] = CONTENT[:-1] + b"!"
    assert fetch(server, tmp_path) == 1
    assert files_in(tmp_path) == set()
    assert "wrong SHA-256" in capsys.readouterr().err


def test_a_file_of_another_length_is_refused_unread(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/org/net/resolve/abc/net.bin"] = CONTENT + b"more"
    assert fetch(server, tmp_path) == 1
    assert len(server.requests) == 1
    assert files_in(tmp_path) == set()
    assert "300004 bytes" in capsys.readouterr().err


def test_an_answer_without_end_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.behaviours = [without_length(b"x" * 5_000_000)] * QUICK.attempts
    assert fetch(server, tmp_path) == 1
    assert "net/net.bin" not in files_in(tmp_path)
    assert sum((tmp_path / name).stat().st_size for name in files_in(tmp_path)) <= len(CONTENT)


def test_a_missing_file_is_not_asked_for_twice(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files.clear()
    assert fetch(server, tmp_path) == 1
    assert len(server.requests) == 1
    message = capsys.readouterr().err
    assert "404" in message and "--mirror" in message


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_tried_again(server: Server, tmp_path: Path, code: int) -> None:
    server.behaviours = [status(code), status(code)]
    assert fetch(server, tmp_path) == 0
    assert len(server.requests) == 3


def test_attempts_are_bounded(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behaviours = [status(503)] * 100
    assert fetch(server, tmp_path) == 1
    assert len(server.requests) == QUICK.attempts
    assert "503" in capsys.readouterr().err


def test_nobody_listening_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fetch", "--models", str(tmp_path), "--mirror", "http://127.0.0.1:9"]
    assert main(arguments, (NET,), QUICK) == 1
    assert "4 attempts" in capsys.readouterr().err


@pytest.mark.parametrize(
    "mirror",
    [
        "http://[bad",
        "http://[bad]",
        "http://a:port",
        "huggingface.co",
        "ftp://a",
        "https://",
        "http://a\n",
    ],
)
def test_an_address_that_is_none_is_said_so_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mirror: str
) -> None:
    arguments = ["fetch", "--models", str(tmp_path / "models"), "--mirror", mirror]
    assert main(arguments, (NET,), Patience(attempts=1)) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert repr(mirror) in said
    assert "is not a valid server URL" in said  # and not an attempt's failure
    assert not (tmp_path / "models").exists()


def test_a_dripping_server_counts_as_cut(server: Server, tmp_path: Path) -> None:
    server.behaviours = [drip]
    hasty = Patience(read_s=5, stall_s=0.6, min_bytes_per_s=1000, attempts=2)
    assert fetch(server, tmp_path, p=hasty) == 0
    assert len(server.requests) == 2
    assert (tmp_path / "net/net.bin").read_bytes() == CONTENT


def test_a_silent_server_counts_as_cut(server: Server, tmp_path: Path) -> None:
    released = threading.Event()

    def say_nothing(handler: BaseHTTPRequestHandler, _content: bytes) -> None:
        released.wait(timeout=20)
        handler.close_connection = True

    server.behaviours = [say_nothing]
    try:
        assert fetch(server, tmp_path, p=Patience(read_s=0.6, attempts=2)) == 0
    finally:
        released.set()
    assert len(server.requests) == 2


def test_a_redirect_keeps_the_range(server: Server, tmp_path: Path) -> None:
    server.files["/cdn"] = CONTENT

    def redirect(handler: BaseHTTPRequestHandler, _content: bytes) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"{server.url}/cdn")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.behaviours = [redirect, cut_after(1000), redirect, answer]
    assert fetch(server, tmp_path) == 0
    assert [(r.path, r.range) for r in server.requests if r.path == "/cdn"] == [
        ("/cdn", None),
        ("/cdn", "bytes=1000-"),
    ]


def test_hf_endpoint_is_honoured_and_mirror_wins(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    assert main(["fetch", "--models", str(tmp_path / "a")], (NET,), QUICK) == 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(server, tmp_path / "b") == 0


def test_s3fd_is_asked_of_the_mirror_and_then_of_its_author() -> None:
    [s3fd] = [file for file in published("v15", with_s3fd=True) if file.path.startswith("s3fd/")]
    origin = "https://www.adrianbulat.com/downloads/python-fan/s3fd-619a316812.pth"
    assert s3fd.urls("https://huggingface.co") == (origin,)
    assert s3fd.urls("http://m:1/a/") == ("http://m:1/a/s3fd/s3fd-619a316812.pth", origin)


@pytest.mark.parametrize("mirrored", [CONTENT, CONTENT[:-1] + b"!", None])
def test_a_file_that_is_not_on_hugging_face_comes_from_the_mirror_or_from_its_origin(
    server: Server, tmp_path: Path, mirrored: bytes | None
) -> None:
    elsewhere = WeightFile("net/net.bin", server.url + "/origin/n.bin", len(CONTENT), NET.sha256)
    server.files = {"/origin/n.bin": CONTENT}
    if mirrored is not None:
        server.files["/mirror/net/net.bin"] = mirrored
    mirror = ("--mirror", server.url + "/mirror")
    assert main(["fetch", "--models", str(tmp_path), *mirror], (elsewhere,), QUICK) == 0
    assert (tmp_path / "net/net.bin").read_bytes() == CONTENT
    asked = [request.path for request in server.requests]
    assert asked == ["/mirror/net/net.bin", *([] if mirrored == CONTENT else ["/origin/n.bin"])]


def test_a_file_that_nobody_has_is_a_failure(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = WeightFile("net/net.bin", server.url + "/origin/n.bin", len(CONTENT), NET.sha256)
    assert fetch(server, tmp_path, (elsewhere,)) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert "/net/net.bin answered 404" in first and "/origin/n.bin answered 404" in last


def test_somebodys_own_file_is_never_replaced(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "net/net.bin"
    own.parent.mkdir()
    own.write_bytes(b"fine-tuned")
    assert fetch(server, tmp_path) == 1
    assert own.read_bytes() == b"fine-tuned"
    assert server.requests == []
    assert "Move it away" in capsys.readouterr().err


def test_a_full_disk_is_noticed_before_anything_is_fetched(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = WeightFile("net/net.bin", NET.source, 1 << 60, NET.sha256)
    assert fetch(server, tmp_path, (huge,)) == 1
    assert server.requests == []
    assert "free" in capsys.readouterr().err


def test_two_fetches_do_not_fill_one_folder(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(tmp_path / ".fetch.lock"):
        assert fetch(server, tmp_path) == 1
    assert "Another fetch" in capsys.readouterr().err
    assert fetch(server, tmp_path) == 0


def test_verify_prints_a_table_and_needs_no_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = (*MANIFEST, WeightFile("net/long.bin", NET.source, 4, sha256(b"1234")))
    (tmp_path / "net").mkdir()
    (tmp_path / "net/net.bin").write_bytes(CONTENT[:-1] + b"!")
    (tmp_path / "net/long.bin").write_bytes(b"12345")
    assert main(["verify", "--models", str(tmp_path)], manifest) == 1
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "wrong SHA-256" in rows["net/net.bin"]
    assert "missing" in rows["net/config.json"]
    assert "wrong size" in rows["net/long.bin"]
    (tmp_path / "net/net.bin").write_bytes(CONTENT)
    assert main(["verify", "--models", str(tmp_path)], (NET,)) == 0
    assert "ok" in capsys.readouterr().out


def test_a_file_without_a_digest_is_judged_by_its_structure(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(path: Path) -> None:
        if not path.read_bytes().startswith(CONTENT[:10]):
            raise ModelLoadFailed("no")

    unknown = WeightFile("net/net.bin", NET.source, 290_000, None, check)
    server.behaviours = [cut_after(100_000)]
    assert fetch(server, tmp_path, (unknown,)) == 0
    assert (tmp_path / "net/net.bin").read_bytes() == CONTENT
    assert "no published digest is known" in capsys.readouterr().out
    (tmp_path / "net/net.bin").unlink()
    server.files["/org/net/resolve/abc/net.bin"] = b"x" * 300_000
    assert fetch(server, tmp_path, (unknown,)) == 1
    assert files_in(tmp_path) == set()


def test_published_lists_only_what_inference_needs() -> None:
    v15 = {file.path: file for file in published("v15")}
    assert set(v15) == {
        "musetalkV15/musetalk.json",
        "musetalkV15/unet.pth",
        "sd-vae/config.json",
        "sd-vae/diffusion_pytorch_model.bin",
        "whisper/config.json",
        "whisper/pytorch_model.bin",
        "dwpose/dw-ll_ucoco_384.pth",
        "face-parse-bisent/79999_iter.pth",
    }
    assert all(file.sha256 and len(bytes.fromhex(file.sha256)) == 32 for file in v15.values())
    assert {file.path for file in published("v15", with_s3fd=True)} - set(v15) == {
        "s3fd/s3fd-619a316812.pth"
    }
    v1 = {file.path for file in published("v1")}
    assert v1 - set(v15) == {"musetalk/musetalk.json", "musetalk/pytorch_model.bin"}
    assert v15["musetalkV15/unet.pth"].urls("https://huggingface.co/") == (
        "https://huggingface.co/TMElyralab/MuseTalk/resolve/"
        "2bcb936e2fddb4d86db4c62fd45b387d0c061571/musetalkV15/unet.pth",
    )


def test_the_configurations_digests_belong_to_their_known_contents() -> None:
    """The specification rebuilds both files exactly, so two digests can be checked offline."""
    unet = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0.dev0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 384,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 8,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    vae = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.4.2",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    files = {file.path: file for file in published("v15")}
    for path, config in (("musetalkV15/musetalk.json", unet), ("sd-vae/config.json", vae)):
        content = (json.dumps(config, indent=2) + "\n").encode()
        assert (len(content), sha256(content)) == (files[path].size_bytes, files[path].sha256)


def write_unet(path: Path, n_tensors: int = 686) -> None:
    """Write a file with the UNet's counts in no space: one tensor repeats a single number."""
    import torch

    tensors = {f"k{i}": torch.zeros(1) for i in range(n_tensors - 1)}
    tensors["large"] = torch.zeros(1).expand(849_947_844 - n_tensors + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)


def state_of_v1_unet(models: Path) -> FileState:
    return verify(published("v1"), models)["musetalk/pytorch_model.bin"]


def test_the_v1_unet_is_known_by_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "musetalk/pytorch_model.bin"
    write_unet(path)
    assert state_of_v1_unet(tmp_path) is FileState.STRUCTURE_ONLY
    write_unet(path, n_tensors=685)
    assert state_of_v1_unet(tmp_path) is FileState.WRONG_STRUCTURE
    path.write_bytes(b"<html>not found</html>")
    assert state_of_v1_unet(tmp_path) is FileState.WRONG_STRUCTURE


def test_a_flipped_bit_in_the_v1_unet_is_found(tmp_path: Path) -> None:
    path = tmp_path / "musetalk/pytorch_model.bin"
    write_unet(path)
    with zipfile.ZipFile(path) as archive:
        [tensor] = [info for info in archive.infolist() if info.filename.endswith("/data/7")]
    content = bytearray(path.read_bytes())
    # 30 bytes of local header, the name and the extra field come before the tensor's bytes.
    start = tensor.header_offset + 30
    start += sum(content[tensor.header_offset + at] for at in (26, 28))
    content[start + 256 * content[tensor.header_offset + 29]] ^= 1
    path.write_bytes(content)
    assert state_of_v1_unet(tmp_path) is FileState.WRONG_STRUCTURE


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            '{"in_channels": 8, "out_channels": 4, "cross_attention_dim": 384}',
            FileState.STRUCTURE_ONLY,
        ),
        (
            '{"in_channels": 4, "out_channels": 4, "cross_attention_dim": 768}',
            FileState.WRONG_STRUCTURE,
        ),
        ("[]", FileState.WRONG_STRUCTURE),
        ("{", FileState.WRONG_STRUCTURE),
    ],
)
def test_the_v1_configuration_is_known_by_its_values(
    tmp_path: Path, config: str, expected: FileState
) -> None:
    (tmp_path / "musetalk").mkdir()
    (tmp_path / "musetalk/musetalk.json").write_text(config)
    assert verify(published("v1"), tmp_path)["musetalk/musetalk.json"] is expected


def test_a_wrong_command_line_exits_with_2() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fetch", "--version", "v2"])
    assert stop.value.code == 2
