"""The drain of one ingress: requests for it, which the routes make, and how far it is."""

from __future__ import annotations

import asyncio


class Draining:
    """What the routes request and the job runner (job_runner.py) does. Nothing takes it back.

    `requested`: no job begins any more. `hand_back`: running jobs go back into the queue too.
    `over`: the running jobs have ended and were answered.
    """

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.hand_back = asyncio.Event()
        self.over = asyncio.Event()
