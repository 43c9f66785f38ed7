"""Runs the application under uvicorn, and ends it without waiting for calls that only wait."""

from __future__ import annotations

import gc
import logging
import signal
from types import FrameType

import uvicorn

from orchestrator.app import create_app
from orchestrator.service.logs import set_up_logs
from orchestrator.service.services import Services
from orchestrator.service.settings import Settings, make_folder
from orchestrator.store.store import JobStore

logger = logging.getLogger(__name__)

END_S = 10  # for requests that are being answered when the process is asked to end
KEEP_ALIVE_S = 75  # longer than workers pause between calls, so that their connections stay open


class Server(uvicorn.Server):
    """A server that, asked to end, lets held claims and followers of jobs return first."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end. Called by a signal, in the event loop's thread.

        uvicorn's own method would raise the signal again at the end, and a process that was asked
        to end would not exit with status 0.
        """
        self._services.stop()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def serve(settings: Settings) -> None:
    """Open the store and serve until a signal ends the process."""
    set_up_logs()
    url = settings.database_url.get_secret_value()
    make_folder(url)
    plan = settings.fleet_plan()
    services = Services(settings, JobStore.open(url, settings.rules(plan)), plan)
    if settings.admin_api_key is None and not services.store.all_keys():
        logger.warning(
            "nobody can submit a job yet: set ORCHESTRATOR_ADMIN_KEY, or add a client's key"
        )
    server = new_server(settings, services)
    spare_the_collector()
    server.run()


def spare_the_collector() -> None:
    """Leave everything that exists now, and lives as long as the process, out of collections.

    Python's full collections stop all threads. With the modules among what they search, each took
    some 90 ms, and the 99th percentile of a claim was 120 ms.
    """
    gc.collect()
    gc.freeze()


def new_server(settings: Settings, services: Services) -> Server:
    """Return the server of an application."""
    config = uvicorn.Config(
        create_app(services),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        root_path=settings.root_path,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=END_S,
        limit_concurrency=4096,
    )
    return Server(config, services)
