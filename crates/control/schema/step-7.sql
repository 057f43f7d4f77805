-- From schema version 6 to 7: machines that administrators enrolled.
CREATE TABLE machine (
    tailnet INTEGER NOT NULL REFERENCES tailnet (id),
    key     TEXT NOT NULL,
    body    TEXT NOT NULL CHECK (json_valid(body)),
    PRIMARY KEY (tailnet, key)
) STRICT, WITHOUT ROWID;
