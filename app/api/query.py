"""Unknown query parameters are refused, as unknown fields of a body are."""

from copy import copy

from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

UNKNOWN_PARAMETER = "unknown_parameter"  # the type of the error


class KnownParameters:
    """ASGI app: refuses a request with other query parameters before its body is read.

    Raises ``RequestValidationError``.
    """

    def __init__(self, app: ASGIApp, known: frozenset[str]) -> None:
        self._app = app
        self._known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["query_string"]:
            unknown = QueryParams(scope["query_string"]).keys() - self._known
            if unknown:
                raise RequestValidationError(
                    [
                        {"type": UNKNOWN_PARAMETER, "loc": ("query", name), "msg": ""}
                        for name in sorted(unknown)
                    ]
                )
        await self._app(scope, receive, send)


def with_known_parameters(route: BaseRoute) -> BaseRoute:
    """A copy of the route that takes no other query parameters than those that it declares."""
    if not isinstance(route, APIRoute):
        return route
    checked = copy(route)
    checked.app = KnownParameters(route.app, parameters_of(route.dependant))
    return checked


def parameters_of(dependant: Dependant) -> frozenset[str]:
    """The names of query parameters of a route and of its dependencies."""
    own = (field.alias for field in dependant.query_params)
    return frozenset(own).union(*map(parameters_of, dependant.dependencies))
