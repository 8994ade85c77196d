"""Runs the behaviour suites of the Order Service on Postgres."""
# ruff: noqa: F403 - each function of the suites is a test here

from behaviour.order.crash_points import *
from behaviour.order.outbox_entries import *
from behaviour.order.placing import *
from behaviour.order.process_manager import *
