-- The runtime role reads and writes the rows of these tables. Later tables are granted to it when they are created.
DO $$
BEGIN
    EXECUTE format(
        'GRANT SELECT, INSERT, UPDATE, DELETE ON orders, projections, outbox, idempotency_keys, leader_terms TO %I',
        current_schema() || '_runtime');
END $$;

-- The shadow table of a rebuild that was killed; now it is a temporary table.
DROP SCHEMA IF EXISTS rebuild_orders CASCADE;
