"""`lipsync drain [CONFIG]`: a running application takes no more jobs, and ends those that run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipsync.commands.serve import Config
from lipsync.flags import Json
from lipsync.terminal import Complaint, terminal_of

if TYPE_CHECKING:
    import httpx

POLL_S = 1.0
ANSWER_S = 30.0


def drain(
    context: typer.Context,
    config: Config = None,
    hand_back: Annotated[
        bool,
        typer.Option(
            "--hand-back",
            metavar="",
            help="Running jobs are not waited for, and start again at the next start.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Let the application on this machine take no more jobs, and wait until none runs.

    Jobs that wait stay in its registry for the next start. Only a restart takes a drain back. If
    this command is ended, the drain goes on, and the same command follows it again. The key of
    the request is INGRESS_API_KEY or, without it, INTERNAL_API_KEY.
    """
    import httpx

    from lipsync.project import config_of
    from serve_app.config.config_file import ConfigInvalid
    from serve_app.one_shot.exit_codes import BAD_INPUT, OWN_FAULT

    terminal = terminal_of(context)
    try:
        base = _base_url(config_of(config, terminal))
    except ConfigInvalid as invalid:
        terminal.complain(Complaint("usage", str(invalid), BAD_INPUT))
        raise typer.Exit(BAD_INPUT) from None
    said = ""
    try:
        with httpx.Client(
            base_url=base, headers=_headers(), trust_env=False, timeout=ANSWER_S
        ) as client:
            while (left := _left(client, hand_back))["status"] != "drained":
                if (text := _in_words(left)) != said:
                    terminal.say(text)
                said = text
                time.sleep(POLL_S)
    except httpx.TransportError as exc:
        text = f"Nothing answers at {base} ({type(exc).__name__})."
        terminal.complain(Complaint("unavailable", text, OWN_FAULT, "Is the application running?"))
        raise typer.Exit(OWN_FAULT) from None
    except httpx.HTTPStatusError as exc:
        body = exc.response.json()
        terminal.complain(
            Complaint(body["code"], body["error_message"], OWN_FAULT, body.get("hint"))
        )
        raise typer.Exit(OWN_FAULT) from None
    waiting = f"{left['queued']} for the next start"
    terminal.result(left, [("jobs that run", "none"), ("jobs that wait", waiting)])


def _left(client: httpx.Client, hand_back: bool) -> dict[str, Any]:
    """Request the drain, and return what is left to do."""
    answer = client.post("/admin/drain", json={"hand_back": hand_back})
    left: dict[str, Any] = answer.raise_for_status().json()
    return left


def _in_words(left: dict[str, Any]) -> str:
    jobs = [f"{job['id']} ({job['progress']['fraction']:.0%})" for job in left["running"]]
    return f"running: {', '.join(jobs) or 'none'}; waiting: {left['queued']}"


def _base_url(config: Path) -> str:
    """Return where the application of a configuration listens."""
    from serve_app.config.config_file import read_config_file
    from serve_app.gate.links import in_address
    from serve_app.launcher.checks import DEFAULT_HOST, DEFAULT_PORT

    options = read_config_file(config).values.get("http_options") or {}
    host, port = options.get("host", DEFAULT_HOST), options.get("port", DEFAULT_PORT)
    if host in ("0.0.0.0", "::"):
        host = DEFAULT_HOST
    return f"http://{in_address(host)}:{os.environ.get('WORKER_PORT') or port}"


def _headers() -> dict[str, str]:
    key = os.environ.get("INGRESS_API_KEY") or os.environ.get("INTERNAL_API_KEY")
    return {"X-Internal-API-Key": key} if key else {}
