-- What each piece of bulk work waits for, and since when; written by whoever has the
-- lease, in the server's process `pid`.
CREATE TABLE opsward.waiting (
    work  text PRIMARY KEY,
    what  text        NOT NULL,
    since timestamptz NOT NULL,
    pid   integer     NOT NULL
);
