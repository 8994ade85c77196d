-- The running service adds and reads events with the runtime role. It can neither change nor remove one, because later
-- tables of the schema are granted to this role with UPDATE and DELETE, and this one is not.
-- MAINTAIN is for LOCK TABLE, which orders the inserts.
DO $$
DECLARE
    runtime text := current_schema() || '_runtime';
BEGIN
    EXECUTE format('REVOKE ALL ON events FROM %I', runtime);
    EXECUTE format('GRANT SELECT, INSERT, MAINTAIN ON events TO %I', runtime);
    EXECUTE format('GRANT USAGE ON SEQUENCE events_notification_id_seq TO %I', runtime);
END $$;
