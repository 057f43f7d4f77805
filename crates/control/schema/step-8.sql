-- From schema version 7 to 8: authorities whose certificates enrol machines.
CREATE TABLE machine_ca (
    tailnet INTEGER NOT NULL REFERENCES tailnet (id),
    id      TEXT NOT NULL,
    body    TEXT NOT NULL CHECK (json_valid(body)),
    PRIMARY KEY (tailnet, id)
) STRICT, WITHOUT ROWID;
