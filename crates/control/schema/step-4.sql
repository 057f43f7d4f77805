-- From schema version 3 to 4: a person of an identity provider is one user of a tailnet at most.
CREATE UNIQUE INDEX user_identity ON user (tailnet, body ->> '$.identity.issuer', body ->> '$.identity.subject');
