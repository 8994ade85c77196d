-- The runtime role reads and writes the rows of these tables. Later tables are granted to it when they are created.
DO $$
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON users, reservations TO %I', current_schema() || '_runtime');
END $$;
