# Every command of Waypost. `./justw X` needs only Python; `just X` works where just is installed.

set positional-arguments
set quiet

stack := "uv run --no-sync --quiet python -m stack"

# What can be done here
[private]
default:
    just --list --unsorted --justfile {{ quote(justfile()) }}

# Bring up the whole system, or bring it up to date; ends with a real order
[group('run')]
[no-exit-message]
deploy:
    {{ stack }} deploy

# Show on one screen what runs
[group('run')]
[no-exit-message]
status:
    {{ stack }} status

# Print export lines with addresses and operator credentials
[group('run')]
[no-exit-message]
env:
    {{ stack }} env

# Stop everything, keep the data
[group('run')]
[no-exit-message]
down:
    {{ stack }} down

# Remove everything: processes, mounts, data
[group('run')]
[no-exit-message]
destroy:
    {{ stack }} destroy

# Show what deploy would change, as a diff (exit 0: nothing, 2: something)
[group('look')]
[no-exit-message]
plan:
    {{ stack }} plan

# Show what a job or an agent said last
[group('look')]
[no-exit-message]
logs service:
    {{ stack }} logs {{ quote(service) }}

# Show a trace as a waterfall
[group('look')]
[no-exit-message]
trace id:
    {{ stack }} trace {{ quote(id) }}

# Look over the whole store for orders that are lost, placed twice or hold wrong credit (exit 1: findings)
[group('operate')]
[no-exit-message]
audit-orders:
    {{ stack }} audit-orders

# Make a read table anew from all events and switch over to it: orders
[group('operate')]
[no-exit-message]
projection-rebuild name:
    {{ stack }} projection-rebuild {{ quote(name) }}

# Run the tests, or some tiers of them: unit contract integration infra chaos (and `long`: what takes minutes)
[group('work')]
[no-exit-message]
test *tiers:
    {{ stack }} test {{ tiers }}

# Measure something; without a name, say what can be measured
[group('work')]
[no-exit-message]
bench name="":
    uv run --no-sync --quiet python tests/bench {{ quote(name) }}

# Break something for a while: `chaos list` says what; `chaos off` ends it
[group('work')]
[no-exit-message]
chaos *words:
    {{ stack }} chaos "$@"

# Build the zipapps
[group('work')]
[no-exit-message]
build: protos
    {{ stack }} build

# Generate the gRPC stubs
[group('work')]
[no-exit-message]
protos:
    {{ stack }} protos

# Check style, types, import contracts and protos
[group('work')]
[no-exit-message]
lint: protos
    uv run --no-sync --quiet ruff check .
    uv run --no-sync --quiet ruff format --check .
    uv run --no-sync --quiet mypy chassis/chassis gateway/gateway services/user/user_service services/order/order_service stack/stack nomad/sidecars/edge
    uv run --no-sync --quiet lint-imports --no-cache
    uv run --no-sync --quiet buf lint protos

# Put the code into the common form
[group('work')]
[no-exit-message]
fmt:
    uv run --no-sync --quiet ruff check --fix --quiet .
    uv run --no-sync --quiet ruff format .
    uv run --no-sync --quiet buf format --write protos
