"""Clients that disconnect from Serve's proxy, as the routes of the ingress see them.

The proxy then cancels the call of the ingress, and with it the call by which the ingress reads the
client's messages. If the latter ends first, `receive` raises Ray's error inside a route. Nothing
handles it there, and asyncio logs its trace later.
"""

from ray.exceptions import TaskCancelledError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

GONE: Message = {"type": "http.disconnect"}


class DepartedClients:
    """Lets `receive` return `http.disconnect` for a client whose request was cancelled."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application. See the class."""
        await self._app(scope, _disconnecting(receive), send)


def _disconnecting(receive: Receive) -> Receive:
    is_gone = False

    async def receive_or_gone() -> Message:
        nonlocal is_gone
        if not is_gone:
            try:
                return await receive()
            except TaskCancelledError:
                is_gone = True  # nothing comes any more
        return GONE

    return receive_or_gone
