"""Starts the application and stands by it: `python -m serve_app.launch [CONFIG]`.

1. read and check the configuration, the environment and the machine, before Ray is started
2. set the environment that Ray reads
3. start Ray and Serve, deploy
4. wait until the application is ready, or say in one sentence why it never will be
5. on SIGTERM or SIGINT take no new job, let those that run end, and stop; a second one stops
   at once

Exit status: 0 after a stop that was asked for, 2 for what cannot be started, 1 if the running
application is lost.
"""

from __future__ import annotations

import http.client
import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from serve_app.config.config_file import ConfigInvalid
from serve_app.gate.callers import CallerRules
from serve_app.gate.links import in_address
from serve_app.launcher.checks import Start, check_start, port_fault
from serve_app.launcher.console import Console
from serve_app.launcher.ray_cluster import (
    Cluster,
    StartFailed,
    State,
    environment_before_ray,
    environment_of_replicas,
)
from serve_app.telemetry.logs import set_up_logging

logger = logging.getLogger("serve_app.launch")

DEFAULT_CONFIG = "serve_config.yaml"
STARTING_LOOK_S = 0.1
STILL_S = 30.0  # a start that takes longer says so that often
ANSWER_S = 5.0
RUNNING_LOOK_S = 5.0  # a look costs some 10 ms
LOST_S = 60.0  # Serve silent for that long is gone
STANDING_LOOK_S = 1.0
DRAIN_LOOK_S = 0.1
FREE_S, FREE_LOOK_S = 10.0, 0.05
LAST_WORDS_S = 3.0  # Ray's log lines come some tenths of a second late
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Wishes:
    """How often somebody asked for the end."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.count = 0

    def listen(self) -> None:
        """Take the signals; again after `ray.init`, which takes SIGTERM for itself."""
        for one in SIGNALS:
            signal.signal(one, self._on_signal)

    def wait(self, seconds: float) -> bool:
        """Wait for the first wish; True if there is one."""
        return self._asked.wait(seconds)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        self._asked.set()
        if self.count > 2:  # the stop itself hangs: the next one ends this process
            signal.signal(signum, signal.SIG_DFL)


def main(arguments: list[str] | None = None) -> int:
    """Run the launcher; the exit status."""
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
        return 2
    if start.cluster is None and not start.metrics_port:
        start = replace(start, metrics_port=_free_port())
    os.environ |= environment_of_replicas(start)
    return run(start)


def run(start: Start) -> int:
    """Start what was checked, stand by it until somebody wants its end; the exit status."""
    set_up_logging(start.env.secrets, is_json=start.is_json)
    wishes, console, cluster = Wishes(), Console(start.is_json), Cluster(start)
    wishes.listen()
    try:
        status = _start_and_stand_by(start, cluster, console, wishes)
    except StartFailed as failed:
        if wishes.count:
            return 0  # what was being started was stopped in the middle
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


def _start_and_stand_by(start: Start, cluster: Cluster, console: Console, wishes: Wishes) -> int:
    logger.info("starting", extra={"port": start.port})
    cluster.begin()
    wishes.listen()
    console.attach()
    if not wishes.count:
        cluster.deploy()
    ready = _wait_until_ready(start, cluster, wishes)
    console.is_ready = True
    if ready:
        logger.info("%s", ready_line(start, _facts(start)))
        if not _stand_by(cluster, wishes):
            print("lipsync-serve: Ray is gone, and the application with it", file=sys.stderr)
            return 1
        if _drain(cluster, start.args.queue.drain_s, wishes):
            console.wait_for_last_words(LAST_WORDS_S)
    return 0


def _wait_until_ready(start: Start, cluster: Cluster, wishes: Wishes) -> bool:
    """Wait for every deployment; False if the end was wished for meanwhile.

    Raises:
        StartFailed: one cannot be started.
    """
    said_at = time.monotonic()
    while not wishes.wait(STARTING_LOOK_S):
        state = _state(cluster)
        if time.monotonic() - said_at > STILL_S:
            said_at = time.monotonic()
            logger.info("still starting: %s", ", ".join(state.waiting) or "the HTTP port")
        if state.failure is not None:
            where = f" (traces: {cluster.logs})" if cluster.logs else ""
            raise StartFailed(f"{state.failure}{where}")
        if state.is_running and answers(start):
            return True
    return False


def answers(start: Start) -> bool:
    """Whether `GET /hc` is answered with 200; taken for granted where it cannot be asked from here.

    Serve calls a deployment running a moment before its proxy knows where to send requests.
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


class Watch(threading.Thread):
    """Looks at the running application now and then, and says what changes.

    In a thread of its own: Serve's controller may hang, and a signal has to be heard then too.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._unhealthy: tuple[str, ...] = ()
        self._over = threading.Event()
        self.is_lost = False

    def end(self) -> None:
        """Look no more; a look that is under way says nothing."""
        self._over.set()

    def run(self) -> None:
        """Look until the cluster is lost. A controller that died is back within seconds."""
        seen = time.monotonic()
        while not self.is_lost and not self._over.wait(RUNNING_LOOK_S):
            try:
                self._compare(self._cluster.state().unhealthy)
            except Exception as exc:
                if self._over.is_set():
                    return
                silent_s = time.monotonic() - seen
                logger.warning(
                    "Serve has not answered for %.0f s (%s)", silent_s, type(exc).__name__
                )
                self.is_lost = silent_s > LOST_S
            else:
                seen = time.monotonic()

    def _compare(self, now: tuple[str, ...]) -> None:
        if now != self._unhealthy:
            logger.warning("deployments that are not healthy: %s", ", ".join(now) or "none now")
            self._unhealthy = now


def _stand_by(cluster: Cluster, wishes: Wishes) -> bool:
    """Wait for the wish to end; False if the cluster is lost before."""
    watch = Watch(cluster)
    watch.start()
    try:
        while not wishes.wait(STANDING_LOOK_S):
            if watch.is_lost:
                return False
        return True
    finally:
        watch.end()


def _drain(cluster: Cluster, seconds: float, wishes: Wishes) -> bool:
    """Let the jobs that run end, for `seconds` at most; a second wish ends the waiting.

    True if they have ended.
    """
    logger.info("stopping: no new job is taken; those that run may take %.0f s more", seconds)
    until = time.monotonic() + seconds
    try:
        response = cluster.ask("drain")
        while wishes.count < 2 and time.monotonic() < until:
            try:
                response.result(timeout_s=DRAIN_LOOK_S)
            except TimeoutError:
                continue
            return True
        logger.warning("jobs that still run are given up; they begin anew at the next start")
    except Exception:
        logger.exception("the jobs that run could not be waited for")
    return False


def _wait_until_free(start: Start) -> None:
    """Wait until the port can be listened on, so that the next start finds it free."""
    until = time.monotonic() + FREE_S
    while time.monotonic() < until and any(port_fault(start.host, start.port, "")):
        time.sleep(FREE_LOOK_S)


# --- what is said ---------------------------------------------------------------------------------


def ready_line(start: Start, facts: dict[str, str]) -> str:
    """Return the one line that says what runs where, and who may call it."""
    base = f"http://{in_address(start.reached_at)}:{start.port}"
    metrics = (
        f", metrics http://127.0.0.1:{start.metrics_port}/metrics" if not start.cluster else ""
    )
    engine, landmarks = facts.get("engine", "?"), facts.get("landmarks", "?")
    return (
        f"ready at {base}, documentation at {base}/docs, engine {engine}, landmarks {landmarks}"
        f"{metrics}. {CallerRules.of(start.env).in_words()}"
    )


def _facts(start: Start) -> dict[str, str]:
    """Return engine and landmarks as this machine resolves them."""
    from serve_app.graph.builders import resolve

    args = resolve(start.args, start.env)
    return {"engine": args.engine, "landmarks": args.landmarks}


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def leave(status: int) -> NoReturn:
    """End this process. Ray's exit handlers would look for a second for what is gone already."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
