"""One worker of `make run-fleet`: becomes the application, on the port that it is given.

    python -m demo.fleet_worker CONFIG PORT

The working folder is the worker's own. What it needs to know of the fleet is in its environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Write the configuration into the working folder, and become the launcher."""
    config, port = Path(sys.argv[1]), int(sys.argv[2])
    document = yaml.safe_load(config.read_text())
    document["http_options"] = {"host": "127.0.0.1", "port": port}
    for app in document["applications"]:
        args = app.setdefault("args", {})
        args |= {"state_dir": str(Path.cwd() / "state"), "metrics_port": 0}
        # One job at a time, so that both workers get some.
        args["queue"] = {**args.get("queue", {}), "max_concurrent_jobs": 1}
    own = Path.cwd() / config.name
    own.write_text(yaml.safe_dump(document))
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "serve_app.launch", str(own)])


if __name__ == "__main__":
    main()
