-- The event store of chassis.eventstore, as the eventsourcing library's Postgres recorder reads and writes it.
CREATE TABLE events (
    originator_id      uuid   NOT NULL,
    originator_version bigint NOT NULL,
    topic              text,
    state              bytea,
    notification_id    bigserial,
    PRIMARY KEY (originator_id, originator_version)
);

CREATE UNIQUE INDEX events_notification_id_idx ON events (notification_id);

CREATE TYPE stored_event_uuid AS (
    originator_id      uuid,
    originator_version bigint,
    topic              text,
    state              bytea
);
