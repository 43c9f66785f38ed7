"""Names of outputs, the sidecar, the local folder, and the pre-signed address over real HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import stamina
from hypothesis import given
from hypothesis import strategies as st

from musetalk_pipeline.errors import SourceRefused, Stage, UploadFailed
from serve_app.net.addresses import AddressPolicy
from serve_app.outputs.b2 import B2Store
from serve_app.outputs.b2_bucket import B2Settings
from serve_app.outputs.local import LocalStore
from serve_app.outputs.put import PutLimits, PutStore
from serve_app.outputs.store import OutputStore, SidecarFacts, object_name, sidecar
from serve_app.telemetry.redact import RedactingFilter

ROOT = Path(__file__).resolve().parents[2]
SIDECAR = b'{"musetalk_job_id": "job-123"}'
IDS = st.text(st.characters(), min_size=1, max_size=256)
PATHY = st.lists(
    st.sampled_from(["..", ".", "/", "\\", "~", "-", "a", "A", "%2e", "\0", "\n", "$(x)", ";"]),
    min_size=1,
    max_size=20,
).map("".join)

# --- names ----------------------------------------------------------------------------------------


@given(IDS | PATHY)
def test_any_job_id_becomes_a_plain_name(job_id: str) -> None:
    name = object_name(job_id)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._~-]*", name) and len(name) <= 128
    assert Path("folder", name).parent == Path("folder")  # no separator, neither . nor ..
    assert quote(name) == name
    assert object_name(job_id) == name


@given(IDS | PATHY, IDS | PATHY)
def test_different_job_ids_never_share_a_name(one: str, other: str) -> None:
    if one != other:
        assert object_name(one) != object_name(other)
    # A name that is used as a job id in its turn is another job.
    assert object_name(object_name(one)) != object_name(one) or object_name(one) == one


@pytest.mark.parametrize("job_id", ["job-123", "0", "a" * 128, "A.b_c-D", "5f2c8b1e-77aa"])
def test_plain_job_ids_are_their_own_names(job_id: str) -> None:
    assert object_name(job_id) == job_id


@pytest.mark.parametrize(
    "job_id", ["", "a" * 129, ".hidden", "-rf", "a/b", "a b", "ü", "a~b", "../a", "a\n", "\ud800"]
)
def test_other_job_ids_get_a_digest(job_id: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+~[0-9a-f]{32}", object_name(job_id))


# --- the sidecar ----------------------------------------------------------------------------------


def facts(**changes: object) -> SidecarFacts:
    values: dict[str, object] = {
        "musetalk_job_id": "job-123", "queue_job_id": None, "gpu_class": "RTX-3090",
        "aspect_ratio": "9:16", "resolution": "720p", "generation_time_sec": 11.0,
        "script_wall_time_sec": 80.8, "peak_vram_mib": 7064.7, "peak_ram_kb": None,
        "b2_bucket": "clips", "b2_file_name": "avatar/outputs/job-123.mp4", "engine": "warp",
        "model_version": None, "source_sha256": "a" * 64, "audio_sha256": "b" * 64,
        "stage_times": {"download": 0.37, "upload": 1.1}, "receipt": {"frames": 250},
    }  # fmt: skip
    return SidecarFacts(**{**values, **changes})  # type: ignore[arg-type]


def test_the_sidecar_has_every_field_of_the_contract() -> None:
    moment = datetime(2026, 3, 1, 13, 0, 5, 999, tzinfo=timezone(timedelta(hours=1)))
    document = json.loads(sidecar(facts(), moment))
    assert document == {
        "musetalk_job_id": "job-123", "queue_job_id": None, "gpu_class": "RTX-3090",
        "aspect_ratio": "9:16", "resolution": "720p", "generation_time_sec": 11.0,
        "script_wall_time_sec": 80.8, "peak_vram_mib": 7064.7, "peak_ram_kb": None,
        "b2_bucket": "clips", "b2_file_name": "avatar/outputs/job-123.mp4",
        "create_time_utc": "2026-03-01T12:00:05Z", "engine": "warp", "model_version": None,
        "source_sha256": "a" * 64, "audio_sha256": "b" * 64,
        "stage_times": {"download": 0.37, "upload": 1.1}, "receipt": {"frames": 250},
    }  # fmt: skip


def test_the_sidecar_is_dated_now_unless_told() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    written = json.loads(sidecar(facts()))["create_time_utc"]
    assert before <= datetime.fromisoformat(written) <= datetime.now(UTC)


@given(IDS)
def test_the_sidecar_carries_any_job_id(job_id: str) -> None:
    content = sidecar(facts(musetalk_job_id=job_id))
    assert json.loads(content)["musetalk_job_id"] == job_id and content.isascii()


# --- the local folder -----------------------------------------------------------------------------


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "out.mp4"
    path.write_bytes(os.urandom(3_000_000))
    return path


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "outputs" / "deep")


def names(store_folder: Path) -> set[str]:
    return {entry.name for entry in store_folder.iterdir()}


def test_local_outputs_lie_beside_their_sidecars(
    local: LocalStore, video: Path, tmp_path: Path
) -> None:
    local.check()
    stored = local.put("job-123", video, SIDECAR)
    folder = tmp_path / "outputs" / "deep"
    assert names(folder) == {"job-123.mp4", "job-123.json"}
    assert (folder / "job-123.mp4").read_bytes() == video.read_bytes()
    assert (folder / "job-123.json").read_bytes() == SIDECAR
    assert stored.url == "/files/job-123.mp4"  # the ingress makes a link of it
    assert stored.size_bytes == 3_000_000 and stored.metrics == {}
    assert stored.sha256 == hashlib.sha256(video.read_bytes()).hexdigest()
    assert local.resolve("job-123.mp4") == folder / "job-123.mp4"
    assert local.resolve("job-123.json") == folder / "job-123.json"


def test_storing_again_replaces(local: LocalStore, video: Path, tmp_path: Path) -> None:
    local.put("job", video, b"{}")
    reader = (tmp_path / "outputs" / "deep" / "job.mp4").open("rb")
    before = video.read_bytes()
    video.write_bytes(b"another")
    local.put("job", video, SIDECAR)
    with reader:  # somebody who is being served the first one gets it whole
        assert reader.read() == before
    path = local.resolve("job.mp4")
    assert path is not None and path.read_bytes() == b"another"
    assert names(tmp_path / "outputs" / "deep") == {"job.mp4", "job.json"}


@pytest.mark.parametrize(
    "job_id", ["../../escape", "/etc/cron.d/x", "a/../../b", "..", ".mp4", "\0"]
)
def test_hostile_job_ids_stay_in_the_folder(
    local: LocalStore, video: Path, tmp_path: Path, job_id: str
) -> None:
    stored = local.put(job_id, video, SIDECAR)
    assert names(tmp_path / "outputs") == {"deep"} and names(tmp_path) == {"outputs", "out.mp4"}
    key = stored.url.rpartition("/files/")[2]
    path = local.resolve(key)
    assert path is not None and path.read_bytes() == video.read_bytes()


@pytest.mark.parametrize(
    "key",
    ["", ".", "..", "../out.mp4", "/etc/passwd", "job.mp4/", "./job.mp4", "job", "job.txt",
     "job.mp4.part", ".job.mp4", "a/../job.mp4", "job.mp4\0", "job.mp4\n", "missing.mp4",
     "link.mp4", "folder.mp4", "j" * 5000 + ".mp4", "..%2fout.mp4", "..\\out.mp4", "\ud800.mp4",
     "secret.mp4"],
)  # fmt: skip
def test_nothing_but_outputs_is_served(
    local: LocalStore, video: Path, tmp_path: Path, key: str
) -> None:
    local.put("job", video, SIDECAR)
    folder = tmp_path / "outputs" / "deep"
    (folder / "link.mp4").symlink_to("/etc/passwd")
    (folder / "folder.mp4").mkdir()
    (folder / ".secret.mp4").write_bytes(b"x")
    assert local.resolve(key) is None


@given(key=st.text(st.characters(), max_size=40))
def test_lookups_take_any_text(key: str) -> None:
    assert LocalStore(Path("/nonexistent-folder")).resolve(key) is None


def test_what_a_killed_writer_left_is_removed_at_the_next_start(
    local: LocalStore, tmp_path: Path
) -> None:
    local.check()
    folder = tmp_path / "outputs" / "deep"
    endless = tmp_path / "endless.mp4"
    os.mkfifo(endless)
    put = "import sys; from pathlib import Path; from serve_app.outputs.local import LocalStore;"
    put += "LocalStore(Path(sys.argv[1])).put('job', Path(sys.argv[2]), b'{}')"
    writer = subprocess.Popen([sys.executable, "-c", put, folder, endless], cwd=ROOT)
    try:
        with endless.open("wb") as source:  # opens once the writer reads
            source.write(b"half")
            source.flush()
            [part] = folder.iterdir()
            os.utime(part, (0, 0))
            local.check()
            assert part.exists(), "a living writer's file is its own"
            writer.kill()
            writer.wait(10)
    finally:
        writer.kill()
        writer.wait(10)
    assert part.exists()
    local.check()
    assert names(folder) == set()


def test_a_folder_that_cannot_be_written_is_found_at_start(tmp_path: Path, video: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = LocalStore(tmp_path / "file" / "below")
    with pytest.raises(UploadFailed, match="output folder cannot be written"):
        store.check()
    with pytest.raises(UploadFailed, match="output folder cannot be written") as failed:
        store.put("job", video, SIDECAR)
    assert failed.value.retryable and failed.value.stage is Stage.UPLOAD


FULL_DISK = """
import json, os, sys
from pathlib import Path
from musetalk_pipeline.errors import UploadFailed
from serve_app.outputs.local import LocalStore
store = LocalStore(Path("/mnt/outputs"))
store.check()
Path("/mnt/small.mp4").write_bytes(b"s" * 20_000)
store.put("small", Path("/mnt/small.mp4"), b"{}")
try:
    store.put("job", Path(sys.argv[1]), b"{}")
except UploadFailed as error:
    print(json.dumps([error.message, sorted(os.listdir("/mnt/outputs"))]))
"""


def test_a_full_disk_is_named_and_leaves_nothing(video: Path) -> None:
    """A real one: a file system of 256 KiB in a mount namespace of its own."""
    script = 'mount -t tmpfs -o size=256k tmpfs /mnt && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    trial = subprocess.run([*command, "true"], capture_output=True, timeout=30, check=False)
    if trial.returncode != 0:
        pytest.skip("this machine lets nobody mount a small disk")
    done = subprocess.run(
        [*command, sys.executable, "-c", FULL_DISK, str(video)],
        capture_output=True, timeout=60, check=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    message, left = json.loads(done.stdout)
    assert "disk of the output folder is full" in message
    assert left == ["small.json", "small.mp4"]


# --- a pre-signed address -------------------------------------------------------------------------

Script = Callable[["PutHandler", int], None]
QUICK = PutLimits(try_s=20, connect_s=5, stall_s=5)
SIGNED = "/bucket/job.mp4?X-Amz-Credential=AKIA-one&X-Amz-Signature=0123abcdef"


class PutHandler(BaseHTTPRequestHandler):
    """Hands the request to the script of the server; keeps complete bodies."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: PutTarget

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_PUT(self) -> None:
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append((self.path, dict(self.headers)))
        self.server.script(self, number)

    def store(self, status: int = 200) -> None:
        """Take the body and answer."""
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.reply(status)

    def reply(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.send_header("Location", "/elsewhere")  # means something with 301 only
        self.end_headers()
        self.close_connection = True


class PutTarget(ThreadingHTTPServer):
    """Takes pre-signed uploads and does with them what the test's script says."""

    daemon_threads = True

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), PutHandler)
        self.script = script
        self.lock = threading.Lock()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.bodies: list[bytes] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{SIGNED}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


@contextlib.contextmanager
def put_target(script: Script) -> Iterator[PutTarget]:
    """Serve PUTs by `script`. Tries follow each other at once."""
    server = PutTarget(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with stamina.set_testing(True, attempts=100, cap=True):
            yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.mark.parametrize("status", [200, 201, 204])
def test_the_video_is_put_with_its_length(video: Path, status: int) -> None:
    with put_target(lambda handler, _: handler.store(status)) as server:
        store = PutStore(server.url, limits=QUICK)
        store.check()
        stored = store.put("job-123", video, SIDECAR)
    assert server.bodies == [video.read_bytes()]
    ((path, headers),) = server.requests
    assert path == SIGNED and headers["Content-Length"] == "3000000"
    assert headers["Content-Type"] == "video/mp4" and "Transfer-Encoding" not in headers
    assert urlsplit(stored.url).path == "/bucket/job.mp4" and "?" not in stored.url
    assert stored.size_bytes == 3_000_000 and stored.metrics == {}
    assert stored.sha256 == hashlib.sha256(video.read_bytes()).hexdigest()


def test_passing_troubles_of_the_target_are_overcome(video: Path) -> None:
    def script(handler: PutHandler, number: int) -> None:
        if number == 0:
            handler.reply(503)
        elif number == 1:
            handler.rfile.read(1_000_000)
            handler.connection.close()
        else:
            handler.store()

    with put_target(script) as server:
        PutStore(server.url, limits=QUICK).put("job-123", video, SIDECAR)
    assert server.bodies == [video.read_bytes()] and len(server.requests) == 3


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (503, 3), (429, 3), (408, 3), (403, 1),
                                               (400, 1), (404, 1), (413, 1), (301, 1)])  # fmt: skip
def test_refusals_are_reported_without_the_signature(video: Path, status: int, tries: int) -> None:
    with (
        put_target(lambda handler, _: handler.store(status)) as server,
        pytest.raises(UploadFailed, match=f"answers {status}") as failed,
    ):
        PutStore(server.url, limits=QUICK).put("job-123", video, SIDECAR)
    assert len(server.requests) == tries and {path for path, _ in server.requests} == {SIGNED}
    assert failed.value.details["status_code"] == status
    assert "0123abcdef" not in f"{failed.value} {failed.value.details}"


def hang(handler: PutHandler, _: int) -> None:
    handler.server.released.wait(60)


def trickle(handler: PutHandler, _: int) -> None:
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not handler.server.released.wait(0.02):
            handler.wfile.write(b"y")


@pytest.mark.parametrize("script", [hang, trickle])
def test_a_hanging_target_ends_at_the_deadline(
    video: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve_app.outputs.put")
    limits = PutLimits(try_s=0.3, tries=2)
    with put_target(script) as server, pytest.raises(UploadFailed, match=r"within 0\.3 s"):
        PutStore(server.url, limits=limits).put("job-123", video, SIDECAR)
    # The target may not have come to read the second request.
    reasons = [vars(record)["reason"] for record in caplog.records]
    assert len(reasons) == 2 and all("within 0.3 s" in reason for reason in reasons)


def test_a_target_that_is_not_there(video: Path) -> None:
    with put_target(lambda handler, _: handler.store()) as server:
        url = server.url
    with pytest.raises(UploadFailed, match="connection could not be made"):
        PutStore(url, limits=QUICK).put("job-123", video, SIDECAR)


def test_an_address_from_a_request_is_judged_like_a_download(video: Path) -> None:
    with put_target(lambda handler, _: handler.store()) as server:
        with pytest.raises(SourceRefused, match="loopback"):
            PutStore(server.url, policy=AddressPolicy(), limits=QUICK).put("job", video, SIDECAR)
        assert server.requests == []
        opened = AddressPolicy(frozenset({"127.0.0.1"}))
        PutStore(server.url, policy=opened, limits=QUICK).put("job", video, SIDECAR)
    assert len(server.bodies) == 1
    for url in ("file:///tmp/x", "ftp://h/x", "http://u:p@h/x", "http://127.1/x"):
        with pytest.raises(SourceRefused):
            PutStore(url)


def test_a_video_that_is_not_there_fails_the_put(tmp_path: Path) -> None:
    with (
        put_target(lambda handler, _: handler.store()) as server,
        pytest.raises(UploadFailed, match="cannot be read"),
    ):
        PutStore(server.url, limits=QUICK).put("job", tmp_path / "missing", SIDECAR)


@pytest.mark.parametrize("status", [200, 403, 503])
def test_the_signature_is_in_no_log(video: Path, status: int) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedactingFilter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    text = ""
    try:
        with put_target(lambda h, _: h.store(status)) as server:
            store = PutStore(server.url, limits=QUICK)
            text += repr(store)
            text += repr(store.put("job-123", video, SIDECAR))
    except UploadFailed as error:
        text += f"{error!r} {error.details}"
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
    text += stream.getvalue()
    assert "/.../job.mp4" in text
    assert "AKIA-one" not in text and "0123abcdef" not in text


def test_every_store_offers_the_same_interface(tmp_path: Path) -> None:
    stores: list[OutputStore] = [
        LocalStore(tmp_path),
        PutStore("https://storage.example/x"),
        B2Store(B2Settings("id", "key", "clips")),
    ]
    assert [store.name for store in stores] == ["local", "put", "b2"]
    places = [store.place("job").file_name for store in stores]
    assert places == [None, None, "avatar/outputs/job.mp4"]


def test_an_output_in_the_folder_is_looked_for(tmp_path: Path) -> None:
    """Mend 1.11."""
    store = LocalStore(tmp_path / "out")
    assert not store.has("../a job")
    video = tmp_path / "v.mp4"
    video.write_bytes(b"a video")
    store.put("../a job", video, b"{}")
    assert store.has("../a job")
    next((tmp_path / "out").glob("*.mp4")).unlink()
    assert not store.has("../a job")
