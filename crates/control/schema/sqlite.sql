-- Schema version 9. Written once on first start; later versions are reached by the steps in src/store/schema.rs.
-- A record's document is JSON in `body`; the columns beside it are what must be unique or is searched for.

-- Private keys and certificates of the server: noise_key, relay_key, relay certificate.
CREATE TABLE secret (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- `next_address` is the offset in 100.64.0.0/10 where the search for a free address goes on.
CREATE TABLE tailnet (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT NOT NULL UNIQUE,
    body         TEXT NOT NULL CHECK (json_valid(body)),
    next_address INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE user (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    tailnet INTEGER NOT NULL REFERENCES tailnet (id),
    login   TEXT NOT NULL,
    body    TEXT NOT NULL CHECK (json_valid(body)),
    UNIQUE (tailnet, login)
) STRICT;

-- A person of an identity provider is one user of a tailnet at most.
CREATE UNIQUE INDEX user_identity ON user (tailnet, body ->> '$.identity.issuer', body ->> '$.identity.subject');

-- AUTOINCREMENT: an ID is never given to another node, not even after removal.
CREATE TABLE node (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    tailnet  INTEGER NOT NULL REFERENCES tailnet (id),
    node_key TEXT NOT NULL UNIQUE,
    ipv4     TEXT NOT NULL,
    name     TEXT NOT NULL,
    body     TEXT NOT NULL CHECK (json_valid(body)),
    UNIQUE (tailnet, ipv4),
    UNIQUE (tailnet, name)
) STRICT;

-- What a node reports and its peers need to reach it; changes often, and is not audited.
CREATE TABLE node_state (
    node        INTEGER PRIMARY KEY REFERENCES node (id) ON DELETE CASCADE,
    lease_until INTEGER,
    body        TEXT NOT NULL CHECK (json_valid(body))
) STRICT;

-- `hash` is SHA-256 of the secret half; the secret itself is nowhere.
CREATE TABLE auth_key (
    id      TEXT PRIMARY KEY,
    tailnet INTEGER NOT NULL REFERENCES tailnet (id),
    hash    BLOB NOT NULL CHECK (length(hash) = 32),
    body    TEXT NOT NULL CHECK (json_valid(body)),
    used    INTEGER NOT NULL DEFAULT 0,
    CHECK (used <= 1 OR body ->> 'reusable')
) STRICT, WITHOUT ROWID;

-- The versions that were in force; those of long ago are pruned. `author` and `reason` say who set it and why.
CREATE TABLE policy (
    tailnet INTEGER NOT NULL REFERENCES tailnet (id),
    version INTEGER NOT NULL,
    text    TEXT NOT NULL,
    at      TEXT NOT NULL DEFAULT '',
    author  TEXT NOT NULL DEFAULT '',
    reason  TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (tailnet, version)
) STRICT, WITHOUT ROWID;

-- Relays on other machines, one a region; the body is the region as clients are told of it.
CREATE TABLE relay (
    region INTEGER PRIMARY KEY,
    body   TEXT NOT NULL CHECK (json_valid(body))
) STRICT;

-- Keys and clients of the API. `hash` is SHA-256 of the secret half; the secret itself is nowhere.
CREATE TABLE credential (
    id      TEXT PRIMARY KEY,
    tailnet INTEGER NOT NULL REFERENCES tailnet (id),
    hash    BLOB NOT NULL CHECK (length(hash) = 32),
    body    TEXT NOT NULL CHECK (json_valid(body))
) STRICT, WITHOUT ROWID;

-- Machines that administrators enrolled, by their keys.
CREATE TABLE machine (
    tailnet INTEGER NOT NULL REFERENCES tailnet (id),
    key     TEXT NOT NULL,
    body    TEXT NOT NULL CHECK (json_valid(body)),
    PRIMARY KEY (tailnet, key)
) STRICT, WITHOUT ROWID;

-- Authorities whose certificates enrol machines, by the beginning of the SHA-256 of their own.
CREATE TABLE machine_ca (
    tailnet INTEGER NOT NULL REFERENCES tailnet (id),
    id      TEXT NOT NULL,
    body    TEXT NOT NULL CHECK (json_valid(body)),
    PRIMARY KEY (tailnet, id)
) STRICT, WITHOUT ROWID;

-- People with a password on this server itself. `password` is Argon2id of the password with `salt`, `totp` the secret of
-- their second factor, `step` the last step of it that was used: no code is taken twice.
CREATE TABLE account (
    id       TEXT PRIMARY KEY,
    login    TEXT NOT NULL UNIQUE,
    body     TEXT NOT NULL CHECK (json_valid(body)),
    salt     BLOB NOT NULL CHECK (length(salt) = 16),
    password BLOB NOT NULL CHECK (length(password) = 32),
    totp     BLOB NOT NULL CHECK (length(totp) = 20),
    step     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Codes for when the second factor is lost, each for one use; SHA-256 of 80 random bits.
CREATE TABLE recovery_code (
    account TEXT NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    hash    BLOB NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (account, hash)
) STRICT, WITHOUT ROWID;

-- Links with which a user makes an account, one a user; gone once used. `hash` is SHA-256 of the secret half.
CREATE TABLE invitation (
    id      TEXT PRIMARY KEY,
    tailnet INTEGER NOT NULL REFERENCES tailnet (id),
    user    INTEGER NOT NULL UNIQUE,
    hash    BLOB NOT NULL CHECK (length(hash) = 32),
    body    TEXT NOT NULL CHECK (json_valid(body))
) STRICT, WITHOUT ROWID;

-- Append only; each row's hash covers the hash of the row before it. `credential` and `client` say by which credential
-- of the API and from which address somebody called.
CREATE TABLE audit (
    seq     INTEGER PRIMARY KEY,
    at      TEXT NOT NULL,
    tailnet INTEGER,
    who     TEXT NOT NULL,
    what    TEXT NOT NULL,
    subject TEXT NOT NULL,
    before  TEXT,
    after   TEXT,
    prev    BLOB NOT NULL CHECK (length(prev) = 32),
    hash    BLOB NOT NULL CHECK (length(hash) = 32),
    credential TEXT,
    client     TEXT
) STRICT;

-- The entries of one tailnet by number, which is the row's, and by time.
CREATE INDEX audit_by_number ON audit (tailnet);
CREATE INDEX audit_by_time ON audit (tailnet, at);

CREATE TRIGGER audit_is_append_only_1 BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append only'); END;
CREATE TRIGGER audit_is_append_only_2 BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append only'); END;
