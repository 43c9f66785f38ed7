"""What every replica does first: set up its logs and metrics, and keep Serve's own server on
loopback.
"""

from __future__ import annotations

import os

import ray.serve._private.replica as serve_replica
from ray import serve

from serve_app.config.environment import Environment
from serve_app.telemetry.kept_gauge import keep_gauges
from serve_app.telemetry.logs import set_up_logging


def set_up_replica(env: Environment) -> None:
    """Prepare this process. The constructor of every deployment calls this first."""
    set_up_logging(env.secrets, is_json=env.logs_json)
    keep_gauges()
    keep_serves_server_on_loopback()


def replica_id() -> str:
    """Return the unique id of this replica within its deployment."""
    return str(serve.get_replica_context().replica_tag)


def keep_serves_server_on_loopback() -> None:
    """Make the server for calls between deployments listen on this machine only.

    Serve starts one in every replica after the constructor, on all addresses and without a key.
    It unpickles what it receives, so anybody who can reach it can run code here. Calls go through
    Ray unless RAY_SERVE_USE_GRPC_BY_DEFAULT is set, so nothing needs to reach it.
    """
    if os.environ.get("RAY_SERVE_USE_GRPC_BY_DEFAULT", "0") == "1":
        return
    listen = serve_replica.add_port_to_grpc_server

    def listen_here(server: object, address: str) -> int:
        return int(listen(server, address.replace("[::]:", "127.0.0.1:")))

    if listen.__name__ != listen_here.__name__:
        serve_replica.add_port_to_grpc_server = listen_here
