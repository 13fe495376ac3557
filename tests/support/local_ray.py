"""As much of Ray as a search on actors asks for, in this process: an actor answers when called."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class RayTaskError(RayError):
    """What a method of an actor has raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class LocalRay:
    """Stands in for the module; an actor that is killed answers nothing that it is asked then."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: object) -> object:
        return value

    def remote(self, **_resources: object) -> Callable[[type], Any]:
        return lambda kind: SimpleNamespace(remote=lambda: LocalActor(kind()))

    def kill(self, actor: "LocalActor") -> None:
        actor.is_killed = True


class LocalActor:
    def __init__(self, instance: object) -> None:
        self.instance = instance
        self.is_killed = False

    def __getattr__(self, name: str) -> "_Method":
        return _Method(self, name)


@dataclass(frozen=True)
class _Method:
    actor: LocalActor
    name: str

    def remote(self, *arguments: object) -> SimpleNamespace:
        """A reference, whose future is done already."""
        future = Future[Any]()
        if self.actor.is_killed:
            future.set_exception(RayError("The actor died unexpectedly."))
        else:
            try:
                future.set_result(getattr(self.actor.instance, self.name)(*arguments))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is passed on
                future.set_exception(RayTaskError(error))
        return SimpleNamespace(future=lambda: future)
