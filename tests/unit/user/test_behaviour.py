"""The behaviour suite of the User Service on memory."""
# ruff: noqa: F403 - each function of the suites is a test here

from behaviour.user.credit import *
from behaviour.user.registering import *
