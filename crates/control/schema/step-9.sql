-- From schema version 8 to 9: people with a password and a second factor on this server itself, and links that make such.
CREATE TABLE account (
    id       TEXT PRIMARY KEY,
    login    TEXT NOT NULL UNIQUE,
    body     TEXT NOT NULL CHECK (json_valid(body)),
    salt     BLOB NOT NULL CHECK (length(salt) = 16),
    password BLOB NOT NULL CHECK (length(password) = 32),
    totp     BLOB NOT NULL CHECK (length(totp) = 20),
    step     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE recovery_code (
    account TEXT NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    hash    BLOB NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (account, hash)
) STRICT, WITHOUT ROWID;
CREATE TABLE invitation (
    id      TEXT PRIMARY KEY,
    tailnet INTEGER NOT NULL REFERENCES tailnet (id),
    user    INTEGER NOT NULL UNIQUE,
    hash    BLOB NOT NULL CHECK (length(hash) = 32),
    body    TEXT NOT NULL CHECK (json_valid(body))
) STRICT, WITHOUT ROWID;
