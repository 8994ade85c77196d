-- Read table of orders, made from the events by the projection of the same name. Money is in minor units.
CREATE TABLE orders (
    id        uuid PRIMARY KEY,
    user_id   uuid NOT NULL,
    status    text NOT NULL,
    currency  text NOT NULL,
    lines     jsonb NOT NULL,
    total     bigint NOT NULL,
    version   bigint NOT NULL,
    placed_at timestamptz NOT NULL
);

-- Ids are UUIDv7, so their order is the order of time; a page continues below the last id of the one before.
CREATE INDEX orders_user_idx ON orders (user_id, id DESC);
CREATE INDEX orders_user_status_idx ON orders (user_id, status, id DESC);

-- How far each projection has come. Changes in the same transaction as the rows of the projection.
CREATE TABLE projections (
    name     text PRIMARY KEY,
    position bigint NOT NULL
);

-- What is still to be done at the User Service: one row for an event, gone when done.
CREATE TABLE errands (
    position    bigint PRIMARY KEY,
    order_id    uuid NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('reserve', 'release')),
    traceparent text NOT NULL,
    tries       integer NOT NULL DEFAULT 0,
    due_at      timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX errands_due_idx ON errands (due_at);

-- Which order a key of a user has placed, and what was asked then. Written with the events of that order.
CREATE TABLE idempotency_keys (
    user_id      uuid NOT NULL,
    key          text NOT NULL,
    request_hash text NOT NULL,
    order_id     uuid NOT NULL,
    expires_at   timestamptz NOT NULL,
    PRIMARY KEY (user_id, key)
);

CREATE INDEX idempotency_keys_expires_idx ON idempotency_keys (expires_at);
