"""Load shedding: generation requests are refused before they are parsed while the queue is full."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.api.deps import services_of

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class SheddingRoute(APIRoute):
    """A route whose POST requests need a place in the queue.

    The queue is checked before the body is read. A place is held only after it: a client that sends
    no body would hold it for nothing.
    """

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        return _shedding(handle) if self.methods == {"POST"} else handle


def _shedding(handle: Handler) -> Handler:
    async def shed(request: Request) -> Response:
        """Raises ``Overloaded``."""
        generator = services_of(request.scope["state"]).generation.generator
        generator.check_room()
        await request.body()
        with generator.reserved():
            return await handle(request)

    return shed
