-- People. Money is in minor units of the user's currency.
CREATE TABLE users (
    id            uuid PRIMARY KEY,
    email         text NOT NULL,
    -- The email as it is compared: case-folded by the service, because the server's locale may not know how.
    email_key     text NOT NULL UNIQUE,
    name          text NOT NULL,
    password_hash text NOT NULL,
    currency      text NOT NULL,
    credit_limit  bigint NOT NULL CHECK (credit_limit >= 0),
    -- What reservations hold now. The row's lock orders all changes of one user's credit.
    held          bigint NOT NULL DEFAULT 0 CHECK (held BETWEEN 0 AND credit_limit),
    created_at    timestamptz NOT NULL DEFAULT now()
);

-- What orders hold. A released one stays: an order given back never reserves again.
CREATE TABLE reservations (
    order_id   uuid PRIMARY KEY,
    user_id    uuid NOT NULL REFERENCES users,
    amount     bigint NOT NULL CHECK (amount >= 0),
    state      text NOT NULL CHECK (state IN ('held', 'released')),
    created_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now()
);
