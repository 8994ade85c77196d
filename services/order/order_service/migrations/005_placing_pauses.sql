-- Until when no order is placed, because the worker completes fewer than are placed. The worker sets it again and again
-- while this lasts, so a pause ends by itself. No row, or one in the past: orders are placed.
CREATE TABLE placing_pauses (
    name    text PRIMARY KEY,
    ends_at timestamptz NOT NULL
);

DO $$
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON placing_pauses TO %I', current_schema() || '_runtime');
END $$;
