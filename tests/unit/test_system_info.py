"""What a heartbeat says about the machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from serve_app.fleet.system_info import collect_system_info, measure_download_mbit_s, read_cpu_model


def test_the_machine_is_described_plausibly(tmp_path: Path) -> None:
    info = collect_system_info(tmp_path)
    assert info.cpu_cores_logical == psutil.cpu_count()
    assert 1 <= info.cpu_cores_physical <= info.cpu_cores_logical
    assert info.cpu_model
    assert 0 < info.ram_available_gb <= info.ram_total_gb
    assert info.ram_total_gb == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.01)
    assert 0 <= info.disk_free_gb <= info.disk_total_gb
    assert info.download_speed_mbps is None


def test_the_fields_are_json_and_the_contracts(tmp_path: Path) -> None:
    """Mend 1.6: exactly these keys."""
    fields = collect_system_info(tmp_path, download_mbit_s=94.3).as_fields()
    assert json.loads(json.dumps(fields)) == fields
    assert list(fields) == [
        "cpu_cores_physical",
        "cpu_cores_logical",
        "cpu_model",
        "ram_total_gb",
        "ram_available_gb",
        "disk_total_gb",
        "disk_free_gb",
        "download_speed_mbps",
    ]


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        ("processor\t: 0\nmodel name\t: AMD  EPYC 7763 \nmodel name\t: other\n", "AMD EPYC 7763"),
        ("cpu model\t\t: MIPS 24Kc V5.0\n", "MIPS 24Kc V5.0"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n", None),
        ("model name\t:\n", None),
        ("", None),
    ],
)
def test_the_cpu_model_is_read_from_cpuinfo(cpuinfo: str, model: str | None) -> None:
    assert read_cpu_model(cpuinfo) == model


class _Files(BaseHTTPRequestHandler):
    """Serves `/SIZE` as that many bytes; `/missing` as 404; `/cut` as less than it promises."""

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if not name.isdigit() and name != "cut":
            self.send_error(404)
            return
        size = 1000 if name == "cut" else int(name)
        self.send_response(200)
        self.send_header("Content-Length", str(size + (name == "cut")))
        self.end_headers()
        self.wfile.write(bytes(size))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def files() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


async def test_a_configured_address_is_measured(files: str) -> None:
    rate = await measure_download_mbit_s(f"{files}/5000000")
    assert rate is not None
    assert rate > 1.0  # loopback


@pytest.mark.parametrize("name", ["missing", "cut", "1000", "0"])
async def test_what_cannot_be_measured_is_none(files: str, name: str) -> None:
    assert await measure_download_mbit_s(f"{files}/{name}") is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/file", "no address", "http://[::1", ""])
async def test_a_bad_address_is_no_crash(url: str) -> None:
    assert await measure_download_mbit_s(url) is None
