# Every command of Waypost. `./justw X` needs only Python; `just X` works where just is installed.

set positional-arguments
set quiet

run := quote(justfile_directory() / "justw") + " --run"
stack := run + " python -m stack"

# List the recipes
[private]
default:
    just --list --unsorted --justfile {{ quote(justfile()) }}

# Bring up the whole system, or bring it up to date; ends with a real order
[group('run')]
[no-exit-message]
deploy *options:
    {{ stack }} deploy "$@"

# Show on one screen what runs; `--json` for programs
[group('run')]
[no-exit-message]
status *options:
    {{ stack }} status "$@"

# Print export lines with addresses and operator credentials
[group('run')]
[no-exit-message]
env *options:
    {{ stack }} env "$@"

# Stop everything, keep the data
[group('run')]
[no-exit-message]
down *options:
    {{ stack }} down "$@"

# Remove everything: processes, mounts, data
[group('run')]
[no-exit-message]
destroy *options:
    {{ stack }} destroy "$@"

# Show what deploy would change, as a diff (exit 0: nothing, 2: something); `--json` for programs
[group('look')]
[no-exit-message]
plan *options:
    {{ stack }} plan "$@"

# Show the last log lines of a job or an agent
[group('look')]
[no-exit-message]
logs service:
    {{ stack }} logs {{ quote(service) }}

# Show a trace as a waterfall
[group('look')]
[no-exit-message]
trace id:
    {{ stack }} trace {{ quote(id) }}

# Send an open-loop load of RATE requests a second to the running stack, and show rates, latencies and errors live
[group('look')]
[no-exit-message]
load *options:
    {{ stack }} load "$@"

# Search the whole store for orders that are lost, placed twice or hold wrong credit (exit 1: findings)
[group('operate')]
[no-exit-message]
audit-orders *options:
    {{ stack }} audit-orders "$@"

# Rebuild a read table from all events and switch over to it: orders
[group('operate')]
[no-exit-message]
projection-rebuild name:
    {{ stack }} projection-rebuild {{ quote(name) }}

# Work with the mesh: `mesh show` prints who may call what; `mesh dial SERVICE` forwards calls with the operator's rights
[group('operate')]
[no-exit-message]
mesh *words:
    {{ stack }} mesh "$@"

# Replace keys that live long: `rotate mesh-ca` replaces the certificate authority of the mesh
[group('operate')]
[no-exit-message]
rotate *words:
    {{ stack }} rotate "$@"

# Run the tests, or some tiers of them: unit contract integration infra chaos (and `long`: the slow tests)
[group('work')]
[no-exit-message]
test *tiers:
    {{ stack }} test {{ tiers }}

# Run a benchmark; without a name, list all of them; `bench NAME --help` shows its options
[group('work')]
[no-exit-message]
bench *words:
    {{ run }} python tests/bench "$@"

# Cause a fault for a limited time: `chaos list` shows all faults, `chaos off` ends them
[group('work')]
[no-exit-message]
chaos *words:
    {{ stack }} chaos "$@"

# Build the zipapps
[group('work')]
[no-exit-message]
build *options: protos
    {{ stack }} build "$@"

# Generate the gRPC stubs
[group('work')]
[no-exit-message]
protos *options:
    {{ stack }} protos "$@"

# Check style, types, import contracts, dependencies and protos
[group('work')]
[no-exit-message]
lint: protos
    {{ run }} ruff check .
    {{ run }} ruff format --check .
    {{ run }} mypy chassis/chassis gateway/gateway services/user/user_service services/order/order_service stack/stack nomad/edge
    cd tests && {{ run }} lint-imports --config ../pyproject.toml --no-cache
    {{ run }} buf lint protos
    for folder in chassis gateway protos services/order services/user stack; do (cd $folder && {{ run }} deptry --no-ansi . 2>&1) || exit 1; done
    {{ run }} python -m stack.build.dependency_audit

# Format the code
[group('work')]
[no-exit-message]
fmt:
    {{ run }} ruff check --fix --quiet .
    {{ run }} ruff format .
    {{ run }} buf format --write protos
