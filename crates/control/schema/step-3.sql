-- From schema version 2 to 3: relays on other machines.
CREATE TABLE relay (
    region INTEGER PRIMARY KEY,
    body   TEXT NOT NULL CHECK (json_valid(body))
) STRICT;
