"""`lipsync …`, and `python -m lipsync …`: starts the command line and ends with its exit code."""

import sys

from serve_app.one_shot.stopping import Stopped, Stopping


def main() -> None:
    """Run the command line of this process; never returns."""
    stopping = Stopping()
    stopping.install()  # before the imports below, so that Ctrl-C ends them without a traceback
    try:
        from lipsync.app import run

        code = run(sys.argv[1:], stopping)
    except Stopped as stopped:
        stopping.end(stopped)
    if stopping.stopped is not None:  # caught on its way by a library
        stopping.end(stopping.stopped)
    sys.exit(code)


if __name__ == "__main__":
    main()
