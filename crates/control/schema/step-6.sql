-- From schema version 5 to 6: the entries of one tailnet are found by number and by time without looking at those of others.
CREATE INDEX audit_by_number ON audit (tailnet);
CREATE INDEX audit_by_time ON audit (tailnet, at);
