-- Renames tables and columns to the usual words. Only workers use them: the serving path (events, orders,
-- idempotency_keys) is untouched, so an older version that still runs goes on serving. Its workers fail at their next
-- statement, retry, and change nothing until they are replaced.

-- Behind a long reader of these tables all later statements wait for this one, so it gives up early and is retried.
SET LOCAL lock_timeout = '2s';

-- The lock of the projector that fills the table. No batch of it is under way during the renames: it would store its
-- position under the old name afterwards. Later it finds no position there, starts at the first event, and fails.
SELECT pg_advisory_xact_lock(hashtext(current_schema()), hashtext('errands'));

-- Pending calls to the User Service: one row for an event, deleted when the call has succeeded.
ALTER TABLE errands RENAME TO outbox;
ALTER TABLE outbox RENAME COLUMN tries TO attempts;
ALTER TABLE outbox RENAME COLUMN owed_at TO created_at;
ALTER INDEX errands_due_idx RENAME TO outbox_due_idx;
UPDATE projections SET name = 'outbox' WHERE name = 'errands';

-- Which worker leads, until the end of its term. The row stays: the leader of before keeps its term but cannot renew
-- it, so that the next leader starts after its end.
ALTER TABLE terms RENAME TO leader_terms;
ALTER TABLE leader_terms RENAME COLUMN holder TO leader;

DO $$
DECLARE
    old record;
BEGIN
    FOR old IN SELECT conrelid::regclass AS relation, conname AS name FROM pg_constraint
               WHERE conrelid IN ('outbox'::regclass, 'leader_terms'::regclass) LOOP
        EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', old.relation, old.name,
            replace(replace(replace(replace(replace(old.name,
                'errands_', 'outbox_'), '_tries_', '_attempts_'), '_owed_at_', '_created_at_'),
                'terms_', 'leader_terms_'), '_holder_', '_leader_'));
    END LOOP;
END $$;
