"""Starts the application and keeps it running: `lipsync serve [CONFIG]`, and
`python -m serve_app.launch [CONFIG]`.

1. The configuration, the environment and the machine are checked, before Ray is started.
2. The environment that Ray reads is set.
3. Ray and Serve are started, and the application is deployed.
4. The launcher waits until the application is ready, or says in one sentence why it never will be.
5. On SIGTERM or SIGINT no new job is taken, running jobs finish, and everything stops. A second
   signal stops it at once; an orchestrator then gets its jobs back.

Exit codes: 0 after a stop that was requested, 2 if the application cannot be started, 3 if a GPU of
this machine cannot run this build, so that another machine or another image is needed, 1 if the
application is lost while it runs.
"""

from __future__ import annotations

import http.client
import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from serve_app.config.card_checks import shm_fault
from serve_app.config.config_file import ConfigInvalid
from serve_app.config.ports import free_port
from serve_app.gate.callers import CallerRules
from serve_app.gate.links import in_address
from serve_app.launcher.checks import MachineUnfit, Start, check_start
from serve_app.launcher.console import Console
from serve_app.launcher.health_monitor import HealthMonitor
from serve_app.launcher.machine import port_fault
from serve_app.launcher.ray_cluster import (
    Cluster,
    StartFailed,
    State,
    environment_before_ray,
    environment_of_replicas,
)
from serve_app.launcher.stop_requests import StopRequests
from serve_app.telemetry.logs import set_up_logging

logger = logging.getLogger("serve_app.launch")

DEFAULT_CONFIG = "serve_config.yaml"
STARTING_POLL_S = 0.1
STILL_S = 30.0  # a slow start is reported this often
ANSWER_S = 5.0
STOP_POLL_S = 1.0
DRAIN_POLL_S = 0.1
HAND_BACK_S = (
    8.0  # guess: a stage may be in a call of some seconds, and a goodbye takes 3 s at most
)
FREE_S, FREE_POLL_S = 10.0, 0.05
LAST_WORDS_S = 3.0  # Ray delivers log lines some tenths of a second late


def main(arguments: list[str] | None = None) -> int:
    """Run the launcher and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) > 1 or given[:1] in (["-h"], ["--help"]):
        print(f"usage: python -m serve_app.launch [CONFIG]\n\n{__doc__}", file=sys.stderr)
        return 0 if given[:1] in (["-h"], ["--help"]) else 2
    os.environ |= environment_before_ray(os.environ)
    try:
        start = check_start(Path(given[0] if given else DEFAULT_CONFIG))
    except ConfigInvalid as invalid:
        for fault in invalid.faults:
            print(f"lipsync-serve: {fault}", file=sys.stderr)
        return 3 if isinstance(invalid, MachineUnfit) else 2
    if start.cluster is None and not start.metrics_port:
        start = replace(start, metrics_port=free_port("127.0.0.1"))
    os.environ |= environment_of_replicas(start)
    return run(start)


def run(start: Start) -> int:
    """Start what was checked, and run it until a stop is requested; return the exit code."""
    set_up_logging(start.env.secrets, is_json=start.is_json)
    stops, console, cluster = StopRequests(), Console(start.is_json), Cluster(start)
    stops.install()
    try:
        status = _start_and_run(start, cluster, console, stops)
    except StartFailed as failed:
        if stops.count:
            return 0  # the start was stopped in the middle
        print(f"lipsync-serve: {failed}", file=sys.stderr)
        return 2
    except SystemExit:  # Ray's own handler of SIGTERM, while Ray starts
        return 0
    finally:
        cluster.end()
        if start.cluster is None:
            _wait_until_free(start)
    logger.info("stopped")
    return status


def _start_and_run(start: Start, cluster: Cluster, console: Console, stops: StopRequests) -> int:
    logger.info("starting", extra={"port": start.port})
    if start.cluster is None and (small := shm_fault()):
        logger.warning("%s", small)
    cluster.begin()
    stops.install()
    console.attach()
    if not stops.count:
        cluster.deploy()
    ready = _wait_until_ready(start, cluster, stops)
    console.is_ready = True
    if ready:
        logger.info("%s", ready_line(start, _facts(start)))
        if not _wait_for_stop(cluster, stops):
            print("lipsync-serve: Ray is gone, and the application with it", file=sys.stderr)
            return 1
        if _drain(cluster, start.args.queue.drain_s, stops):
            console.wait_for_last_words(LAST_WORDS_S)
        elif start.env.mode != "queue":
            _hand_back(cluster)
    return 0


def _wait_until_ready(
    start: Start, cluster: Cluster, stops: StopRequests, still_s: float = STILL_S
) -> bool:
    """Wait for every deployment; return False if a stop is requested before they are ready.

    Every `still_s` seconds, a line of the log says what is awaited.

    Raises:
        StartFailed: one cannot be started.
    """
    said_at = time.monotonic()
    while not stops.wait(STARTING_POLL_S):
        state = _state(cluster)
        if time.monotonic() - said_at > still_s:
            said_at = time.monotonic()
            logger.info("still starting: %s", ", ".join(state.waiting) or "the HTTP port")
        if state.failure is not None:
            where = f" (traces: {cluster.logs})" if cluster.logs else ""
            raise StartFailed(f"{state.failure}{where}")
        if state.is_running and answers(start):
            return True
    return False


def answers(start: Start) -> bool:
    """Return whether `GET /hc` answers 200. True if that cannot be tested from here.

    Serve reports a deployment as running a moment before its proxy can route requests to it.
    """
    options = start.document["http_options"]
    if start.cluster is not None or options.get("ssl_certfile"):
        return True
    connection = http.client.HTTPConnection(start.reached_at, start.port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/hc")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _state(cluster: Cluster) -> State:
    try:
        return cluster.state()
    except Exception as exc:
        raise StartFailed(
            f"Ray ended while the application started ({type(exc).__name__})"
        ) from exc


def _wait_for_stop(cluster: Cluster, stops: StopRequests) -> bool:
    """Wait until a stop is requested; return False if the cluster is lost first."""
    monitor = HealthMonitor(cluster)
    monitor.start()
    try:
        while not stops.wait(STOP_POLL_S):
            if monitor.is_lost:
                return False
        return True
    finally:
        monitor.end()


def _drain(cluster: Cluster, seconds: float, stops: StopRequests) -> bool:
    """Let running jobs finish, for `seconds` at most; a second signal ends the waiting.

    Returns True if they have finished.
    """
    logger.info("stopping: no new job is taken, and running jobs have %.0f s to finish", seconds)
    until = time.monotonic() + seconds
    try:
        response = cluster.ask("drain")
        while stops.count < 2 and time.monotonic() < until:
            try:
                response.result(timeout_s=DRAIN_POLL_S)
            except TimeoutError:
                continue
            return True
        logger.warning("jobs that are still running are abandoned; the next start runs them again")
    except Exception:
        logger.exception("the launcher could not wait for running jobs")
    return False


def _hand_back(cluster: Cluster) -> None:
    """Let the orchestrator give the running jobs to other workers now, and not after a silence."""
    try:
        cluster.ask("leave").result(timeout_s=HAND_BACK_S)
    except Exception as exc:
        logger.warning("running jobs were not handed back", extra={"error": type(exc).__name__})


def _wait_until_free(start: Start) -> None:
    """Wait until the port is free, so that the next start can listen on it."""
    until = time.monotonic() + FREE_S
    while time.monotonic() < until and any(port_fault(start.host, start.port, "")):
        time.sleep(FREE_POLL_S)


# --- what is printed ------------------------------------------------------------------------------


def ready_line(start: Start, facts: dict[str, str]) -> str:
    """Return the line that says what runs at which address, and who may call it."""
    base = f"http://{in_address(start.reached_at)}:{start.port}"
    metrics = (
        f", metrics http://127.0.0.1:{start.metrics_port}/metrics" if not start.cluster else ""
    )
    studio = f", studio at {base}/" if start.args.studio.enabled else ""
    engine, landmarks = facts.get("engine", "?"), facts.get("landmarks", "?")
    return (
        f"ready at {base}, documentation at {base}/docs{studio}, engine {engine}, "
        f"landmarks {landmarks}{metrics}. {CallerRules.of(start.env).in_words()}"
    )


def _facts(start: Start) -> dict[str, str]:
    """Return engine and landmarks as this machine resolves them."""
    from serve_app.graph.builders import resolve

    args = resolve(start.args, start.env)
    return {"engine": args.engine, "landmarks": args.landmarks}


def leave(status: int) -> NoReturn:
    """End this process without Ray's exit handlers, which would spend a second on what is gone."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
