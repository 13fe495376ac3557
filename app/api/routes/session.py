"""Sessions of browsers: sign in with a key, read the session, sign out."""

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.api.deps import ServicesDep
from app.api.openapi import responses_for
from app.api.schemas.bodies import Body
from app.auth.keys import KeyRefused, Scope
from app.auth.scopes import Authorizer, check_same_origin
from app.auth.sessions import COOKIE, NotSameOrigin, Session, Sessions, SessionsNotKept

router = APIRouter(prefix="/session", tags=["session"])


class SignInBody(Body):
    key: str = Field(min_length=1, max_length=512, description="API key.")


class SessionView(BaseModel):
    """The session of the request's cookie."""

    object: Literal["session"] = Field(default="session", description="Type of this object.")
    requires_key: bool = Field(description="Whether this service requires API keys.")
    name: str | None = Field(description="Name of the session's key; null without a session.")
    scopes: list[Scope] = Field(description="Scopes of the session; empty without a session.")
    ends_at: float | None = Field(
        description="Expiry time if no further requests are sent, in seconds since the epoch."
    )


@router.get("", responses=responses_for(SessionsNotKept))
def get_session(request: Request, response: Response, services: ServicesDep) -> SessionView:
    """Return the current session. Extends a session that has used up part of its lifetime."""
    session = services.authorizer.session(request.scope["headers"])
    if session is not None and (renewed := services.sessions.renewed(session)) is not None:
        session = renewed
        _set_cookie(request, response, services.sessions, session)
    return _view(services.authorizer, session)


@router.post("", responses=responses_for(KeyRefused, NotSameOrigin, SessionsNotKept, has_body=True))
def sign_in(
    body: SignInBody, request: Request, response: Response, services: ServicesDep
) -> SessionView:
    """Exchange an API key for a session cookie that is HttpOnly and SameSite.

    State-changing requests with the cookie are accepted only from this service's own pages.
    """
    check_same_origin(request.scope["headers"])
    session = services.sessions.begin(services.authorizer.find(body.key))
    _set_cookie(request, response, services.sessions, session)
    return _view(services.authorizer, session)


@router.delete("", status_code=204, responses=responses_for(NotSameOrigin, SessionsNotKept))
def sign_out(request: Request, response: Response, services: ServicesDep) -> None:
    """Delete the cookie, and end all sessions of its key."""
    check_same_origin(request.scope["headers"])
    if (session := services.authorizer.session(request.scope["headers"])) is not None:
        services.sessions.end(session)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


def _set_cookie(request: Request, response: Response, sessions: Sessions, session: Session) -> None:
    response.set_cookie(
        COOKIE,
        sessions.cookie(session),
        max_age=sessions.seconds_left(session),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def _view(authorizer: Authorizer, session: Session | None) -> SessionView:
    return SessionView(
        requires_key=authorizer.requires_key,
        name=session.key.name if session else None,
        scopes=sorted(session.key.scopes) if session else [],
        ends_at=session.ends_at if session else None,
    )
