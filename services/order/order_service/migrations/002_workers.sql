-- Which worker is active, for as long as it says so again in time.
CREATE TABLE terms (
    name    text PRIMARY KEY,
    holder  text NOT NULL,
    ends_at timestamptz NOT NULL
);

-- An errand that a worker is at, so that the next active one takes it over at once, and since when it is owed.
ALTER TABLE errands ADD COLUMN claimed boolean NOT NULL DEFAULT false;
ALTER TABLE errands ADD COLUMN owed_at timestamptz NOT NULL DEFAULT now();
