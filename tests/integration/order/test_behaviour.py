"""What the Order Service does, on Postgres."""
# ruff: noqa: F403 - each function of the suites is a test here

from behaviour.order.crash_points import *
from behaviour.order.fulfilling import *
from behaviour.order.placing import *
