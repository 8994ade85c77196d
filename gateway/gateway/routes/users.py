"""Routes of people: registration, sessions, oneself."""

from __future__ import annotations

import math

import grpc
from sanic import Blueprint, HTTPResponse, Request

from chassis.errors import RpcError
from gateway.auth.sessions import backend, signed_in, timed
from gateway.http import serializers
from gateway.http.problems import KINDS, Problem
from gateway.http.schemas import Credentials, Registration, body
from gateway.http.serializers import answered
from shop.user.v1 import user_pb2

routes = Blueprint("users")

# Not DEADLINE_EXCEEDED: the time of the request is over then, and its caller is told so.
_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}


@routes.post("/v1/users")
@timed("password_deadline_seconds")
async def register_user(request: Request) -> HTTPResponse:
    """Register a user."""
    wanted = body(request, Registration)
    call = user_pb2.RegisterUserRequest(email=wanted.email, name=wanted.name, password=wanted.password)
    user = (await backend(request).users.RegisterUser(call)).user
    return answered(serializers.user(user), 201, {"location": "/v1/users/me"})


@routes.post("/v1/sessions")
@timed("password_deadline_seconds")
async def create_session(request: Request) -> HTTPResponse:
    """Exchange email and password for an access token."""
    wanted = body(request, Credentials)
    call = user_pb2.CreateSessionRequest(email=wanted.email, password=wanted.password)
    return answered(serializers.session(await backend(request).users.CreateSession(call)), 201)


@routes.get("/v1/users/me")
@timed("deadline_seconds")
@signed_in
async def get_me(request: Request, user_id: str) -> HTTPResponse:
    """Read the user behind the token, with what is left of the credit; as last read when it cannot be asked for."""
    here = backend(request)
    try:
        user = (await here.users.GetUser(user_pb2.GetUserRequest(user_id=user_id))).user
    except RpcError as error:
        if error.reason == "USER_UNKNOWN":
            here.profiles.forget(user_id)
            raise Problem("UNAUTHENTICATED", "The user of the access token does not exist any more.") from None
        kept = here.profiles.last(user_id, here.settings().profile_stale_seconds) if error.code in _AWAY else None
        if kept is None:
            raise
        return _as_of(*kept)
    here.profiles.keep(user)
    return answered(serializers.user(user))


def _as_of(user: user_pb2.User, age: float) -> HTTPResponse:
    """What was true some seconds ago, and says so: the credit may have changed since."""
    kind = KINDS["STALE"]
    problem = {"type": kind.type, "title": kind.title, "detail": kind.meaning}
    return answered({**serializers.user(user), "problem": problem}, headers={"age": str(math.ceil(age))})
