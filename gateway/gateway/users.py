"""Routes of people: registration, sessions, oneself."""

from __future__ import annotations

from sanic import Blueprint, HTTPResponse, Request

from chassis.errors import RpcError
from gateway import answers
from gateway.access import backend, signed_in, timed
from gateway.answers import answered
from gateway.problems import Problem
from gateway.requests import Credentials, Registration, body
from shop.user.v1 import user_pb2

routes = Blueprint("users")


@routes.post("/v1/users")
@timed("password_deadline_seconds")
async def register_user(request: Request) -> HTTPResponse:
    """Register a user."""
    wanted = body(request, Registration)
    call = user_pb2.RegisterUserRequest(email=wanted.email, name=wanted.name, password=wanted.password)
    user = (await backend(request).users.RegisterUser(call)).user
    return answered(answers.user(user), 201, {"location": "/v1/users/me"})


@routes.post("/v1/sessions")
@timed("password_deadline_seconds")
async def create_session(request: Request) -> HTTPResponse:
    """Exchange email and password for an access token."""
    wanted = body(request, Credentials)
    call = user_pb2.CreateSessionRequest(email=wanted.email, password=wanted.password)
    return answered(answers.session(await backend(request).users.CreateSession(call)), 201)


@routes.get("/v1/users/me")
@timed("deadline_seconds")
@signed_in
async def get_me(request: Request, user_id: str) -> HTTPResponse:
    """Read the user behind the token, with what is left of the credit."""
    try:
        answer = await backend(request).users.GetUser(user_pb2.GetUserRequest(user_id=user_id))
    except RpcError as error:
        if error.reason == "USER_UNKNOWN":
            raise Problem("UNAUTHENTICATED", "The user of the access token does not exist any more.") from None
        raise
    return answered(answers.user(answer.user))
