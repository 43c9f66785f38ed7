"""b2sdk's API over connections that end when their try is over.

The SDK retries by its own rules, sleeps as long as a server requests, and has no deadline for a
whole upload. Here each request is made once, and its timeout is the rest of the try. A `TryGuard`
has every socket, and shuts it down when the try is over, even if a thread of the SDK waits on it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import requests
from b2sdk.v3 import (
    B2Api,
    B2Http,
    B2HttpApiConfig,
    B2Session,
    Services,
    UploadManager,
)
from b2sdk.v3.exception import B2Error
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection


class DeadlinePassedError(B2Error):  # type: ignore[misc]
    """The time of the try is over. The SDK passes this on unchanged, as it is one of its errors."""


class TryGuard:
    """Ends a try at its deadline, by closing every socket that it opened."""

    def __init__(self, deadline: float, *, stall_s: float, connect_s: float) -> None:
        self._deadline = deadline
        self._stall_s = stall_s
        self.connect_s = connect_s
        self._lock = threading.Lock()
        self._is_closed = False
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._sessions: list[requests.Session] = []

    def remaining_s(self) -> float:
        """Return how long a read or write may wait, in seconds.

        Raises:
            DeadlinePassedError: the try is over.
        """
        left_s = self._deadline - time.monotonic()
        if self._is_closed or left_s <= 0:
            raise DeadlinePassedError
        # A little more than the rest, so that the deadline ends the try and is reported.
        return min(left_s + 1.0, self._stall_s)

    def new_session(self) -> requests.Session:
        """Return an HTTP session whose sockets this guard can close."""
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, _WatchedAdapter(self))
        self._sessions.append(session)
        return session

    def watch(self, sock: socket.socket) -> None:
        """Add a socket that was just connected."""
        with self._lock:
            self._sockets.add(sock)
            is_late = self._is_closed
        if is_late:
            _shut_down(sock)

    def close(self) -> None:
        """End all requests of the try. It may have none left."""
        with self._lock:
            self._is_closed = True
            sockets = list(self._sockets)
        for sock in sockets:
            _shut_down(sock)
        for session in self._sessions:
            session.close()


def _shut_down(sock: socket.socket) -> None:
    # Not the method of SSLSocket, which drops the encryption first. A thread that is sending would
    # then continue unencrypted.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _WatchedAdapter(HTTPAdapter):
    """Transport of requests whose connections report their sockets to a guard."""

    def __init__(self, guard: TryGuard) -> None:
        self._guard = guard
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        guard = self._guard

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                guard.watch(self.sock)

        class Encrypted(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                guard.watch(self.sock)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class EncryptedPool(HTTPSConnectionPool):
            ConnectionCls = Encrypted

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": EncryptedPool}


class GuardedConfig(B2HttpApiConfig):  # type: ignore[misc]
    """Makes the SDK use guarded HTTP sessions."""

    def __init__(self, guard: TryGuard, raw_api: Callable[[B2Http], Any]) -> None:
        super().__init__(
            http_session_factory=guard.new_session,
            # The hook fails uploads if the clock of this machine is wrong. B2 itself accepts them.
            install_clock_skew_hook=False,
            user_agent_append="lipsync-serve",
            _raw_api_class=raw_api,
            # Otherwise the SDK replaces the transport of the session with its own.
            decode_content=True,
        )
        self.guard = guard


class _Http(B2Http):  # type: ignore[misc]
    """Makes each request once, within the rest of the try."""

    def __init__(self, config: GuardedConfig) -> None:
        super().__init__(config)
        self._guard = config.guard
        self.CONNECTION_TIMEOUT = config.guard.connect_s

    def request(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        data: Any = None,
        try_count: int = 1,
        params: dict[str, str] | None = None,
        *,
        stream: bool = False,
        _timeout: int | None = None,
    ) -> Any:
        """Make a request as the SDK does, but without its retries, sleeps and timeouts."""
        wait_s = self._guard.remaining_s()
        return super().request(
            method, url, headers, data, 1, params, stream=stream, _timeout=wait_s
        )


class _Session(B2Session):  # type: ignore[misc]
    """Collects in `unfinished` the large files that are not finished yet."""

    B2HTTP_CLASS = staticmethod(_Http)
    unfinished: set[str]

    def start_large_file(self, *args: Any, **kwargs: Any) -> Any:
        response = super().start_large_file(*args, **kwargs)
        self.unfinished.add(response["fileId"])
        return response

    def finish_large_file(self, file_id: str, *args: Any, **kwargs: Any) -> Any:
        response = super().finish_large_file(file_id, *args, **kwargs)
        self.unfinished.discard(file_id)
        return response


class _Uploads(UploadManager):  # type: ignore[misc]
    """Tries a second upload address if the first one is busy, as B2 requires, but not a third."""

    MAX_UPLOAD_ATTEMPTS = 2


class _Services(Services):  # type: ignore[misc]
    UPLOAD_MANAGER_CLASS = staticmethod(_Uploads)


class GuardedApi(B2Api):  # type: ignore[misc]
    SESSION_CLASS = staticmethod(_Session)
    SERVICES_CLASS = staticmethod(_Services)
