"""Downloads one file: continues an earlier attempt, and tries again if that may help."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.files import sync
from musetalk_pipeline.retries import retrying
from musetalk_pipeline.weights.manifest import WeightFile


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a server, and how often to try. Guesses for gigabytes over home lines.

    A connection that brings less than `min_bytes_per_s` over `stall_s` counts as cut.
    """

    connect_s: float = 15.0
    read_s: float = 30.0
    stall_s: float = 60.0
    min_bytes_per_s: int = 1024
    attempts: int = 8
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0


class _TryAgain(Exception):
    """This attempt failed in a way that the next one may not."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A file on its way from `url` to `part`. `show` gets the number of bytes that are there."""

    client: httpx.Client
    file: WeightFile
    url: str
    part: Path
    patience: Patience
    show: Callable[[int], object]

    def run(self) -> None:
        """Fill `part` until the server has given everything.

        Raises:
            ModelLoadFailed: no attempt succeeded. What arrived is kept.
        """
        patience = self.patience
        again = retrying(patience.attempts, patience.backoff_s, patience.max_backoff_s)
        try:
            again((_TryAgain, httpx.TransportError), self._continue)
        except (_TryAgain, httpx.TransportError) as exc:
            raise ModelLoadFailed(
                f"{self.file.path} could not be fetched from {self.url} in {patience.attempts} "
                f"attempts; the last one ended with: {str(exc) or type(exc).__name__}. What "
                "arrived is kept: run the command again to continue.",
                file=str(self.part),
            ) from exc
        except httpx.HTTPError as exc:  # a redirect loop, a malformed address
            raise ModelLoadFailed(
                f"{self.url} cannot be fetched: {exc}", file=str(self.part)
            ) from exc
        except OSError as exc:
            raise ModelLoadFailed(
                f"{self.part} cannot be written: {exc}", file=str(self.part)
            ) from exc

    def _continue(self) -> None:
        """Request what is missing of `part` and append it. Returns when the file is complete.

        Raises:
            _TryAgain: the answer ended early, stalled, or the server was busy.
            ModelLoadFailed: the server will not give this file.
        """
        held = self.part.stat().st_size if self.part.exists() else 0
        if held == self.file.size_bytes and self.file.sha256 is not None:
            self.show(held)
            return
        headers = {"Range": f"bytes={held}-"} if held else {}
        with self.client.stream("GET", self.url, headers=headers) as response:
            if response.status_code == 416:  # the part is as long as the file, or longer
                if _total_bytes(response) == held:
                    return
                self.part.unlink()
                raise _TryAgain("the partial file did not fit the server's")
            self._check_status(response)
            held = _first_byte(response, held)
            length = self._length(response)
            held = self._append(response, held, length)
        if held < length:
            raise _TryAgain(f"the connection ended after {held} of {length} bytes")

    def _append(self, response: httpx.Response, held: int, length: int) -> int:
        """Write the answer behind the first `held` bytes; return how many are there then."""
        with self.part.open("r+b" if held else "wb") as out:
            out.truncate(held)
            out.seek(held)
            # As it arrives: with a chunk size, httpx holds back, and loses, what is less than that.
            for chunk in self._brisk(response.iter_raw()):
                held += len(chunk)
                if held > length:
                    raise _TryAgain(f"the server sent more than {length} bytes")
                out.write(chunk)
                self.show(held)
            sync(out)
        return held

    def _length(self, response: httpx.Response) -> int:
        """Return how long the file will be, having compared that with the published length."""
        offered, file = _total_bytes(response), self.file
        if file.sha256 is None:
            # Only an estimate is published: the server's word is taken, within reason.
            length = file.size_bytes if offered is None else offered
            fits = length <= 2 * file.size_bytes
        else:
            length = file.size_bytes
            fits = offered in (None, length)
        if not fits:
            raise ModelLoadFailed(
                f"{self.url} offers {offered} bytes, but the published {file.path} has "
                f"{file.size_bytes}. Try another server with --mirror.",
                file=file.path,
            )
        return length

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        if status in (408, 425, 429) or status >= 500:
            raise _TryAgain(f"the server answered {status}")
        raise ModelLoadFailed(
            f"{self.url} answered {status} {response.reason_phrase}. If this server does not offer "
            "the file, name another one with --mirror or HF_ENDPOINT.",
            status=status,
        )

    def _brisk(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass `chunks` on; raise _TryAgain if they arrive too slowly for too long."""
        since, arrived = time.monotonic(), 0
        for chunk in chunks:
            yield chunk
            arrived += len(chunk)
            elapsed_s = time.monotonic() - since
            if elapsed_s >= self.patience.stall_s:
                if arrived < self.patience.min_bytes_per_s * elapsed_s:
                    raise _TryAgain(f"only {arrived} bytes came in {elapsed_s:.0f} s")
                since, arrived = time.monotonic(), 0


def _first_byte(response: httpx.Response, held: int) -> int:
    """Return which byte of the file the answer begins with, at most `held`."""
    if response.status_code != 206:
        return 0  # a server without ranges sends everything
    # "bytes 100-199/200"
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if not start.isdigit() or int(start) > held:
        raise _TryAgain("the server sent another part than was requested")
    return int(start)


def _total_bytes(response: httpx.Response) -> int | None:
    """Return how long the whole file is, None if the server does not say."""
    if response.status_code in (206, 416):
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        total = response.headers.get("Content-Length", "")
    return int(total) if total.isdigit() else None
