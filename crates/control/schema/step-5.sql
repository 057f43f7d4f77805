-- From schema version 4 to 5: keys and clients of the API; the audit log says by what and from where.
CREATE TABLE credential (
    id      TEXT PRIMARY KEY,
    tailnet INTEGER NOT NULL REFERENCES tailnet (id),
    hash    BLOB NOT NULL CHECK (length(hash) = 32),
    body    TEXT NOT NULL CHECK (json_valid(body))
) STRICT, WITHOUT ROWID;
ALTER TABLE audit ADD COLUMN credential TEXT;
ALTER TABLE audit ADD COLUMN client TEXT;
