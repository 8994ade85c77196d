"""Routes of users: registration, sign-in, the profile of the signed-in user."""

from __future__ import annotations

import math

import grpc
from sanic import Blueprint, HTTPResponse, Request

from chassis.errors import RpcError
from gateway.backend import backend_of
from gateway.http import preconditions, serializers
from gateway.http.problems import KINDS, Problem
from gateway.http.schemas import Credentials, Registration, body
from gateway.http.serializers import json_response
from gateway.routes.admission import admitted, admitted_user
from shop.user.v1 import user_pb2

routes = Blueprint("users")

# DEADLINE_EXCEEDED is missing on purpose: the time of the request is over then, and its caller has to see that.
_UNAVAILABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}


@routes.post("/v1/users", stream=True)
@admitted("password_deadline_seconds")
async def register_user(request: Request) -> HTTPResponse:
    """Register a user."""
    registration = body(request, Registration)
    preconditions.require(request, exists=False)
    call = user_pb2.RegisterUserRequest(
        email=registration.email, name=registration.name, password=registration.password
    )
    backend = backend_of(request)
    with backend.limits.password(request.ctx.client_address):
        user = (await backend.users.RegisterUser(call)).user
    return json_response(serializers.user(user), 201, {"location": "/v1/users/me"})


@routes.post("/v1/sessions", stream=True)
@admitted("password_deadline_seconds")
async def create_session(request: Request) -> HTTPResponse:
    """Exchange email and password for an access token."""
    credentials = body(request, Credentials)
    preconditions.require(request, exists=False)
    call = user_pb2.CreateSessionRequest(email=credentials.email, password=credentials.password)
    backend, address = backend_of(request), request.ctx.client_address
    with backend.limits.sign_in(address, credentials.email):
        session = await backend.users.CreateSession(call)
    return json_response(serializers.session(session), 201)


@routes.get("/v1/users/me")
@admitted_user("deadline_seconds")
async def get_me(request: Request, user_id: str) -> HTTPResponse:
    """Read the signed-in user with the available credit; from the cache while the User Service is unavailable."""
    backend = backend_of(request)
    try:
        user = (await backend.users.GetUser(user_pb2.GetUserRequest(user_id=user_id))).user
    except RpcError as error:
        if error.reason == "USER_UNKNOWN":
            backend.profiles.remove(user_id)
            raise Problem("UNAUTHENTICATED", "The user of the access token does not exist any more.") from None
        cached = backend.profiles.get(user_id) if error.code in _UNAVAILABLE else None
        if cached is None:
            raise
        return _stale(*cached)
    backend.profiles.store(user)
    return json_response(serializers.user(user))


def _stale(user: user_pb2.User, age: float) -> HTTPResponse:
    """Returns a cached profile, marked as such because the credit may have changed since."""
    kind = KINDS["STALE"]
    problem = {"type": kind.type, "title": kind.title, "detail": kind.meaning}
    return json_response({**serializers.user(user), "problem": problem}, headers={"age": str(math.ceil(age))})
