-- From schema version 1 to 2: who set a policy, when and why, as far as the audit log knows; users have roles, and the
-- first user of a tailnet owns it.
ALTER TABLE policy ADD COLUMN at TEXT NOT NULL DEFAULT '';
ALTER TABLE policy ADD COLUMN author TEXT NOT NULL DEFAULT '';
ALTER TABLE policy ADD COLUMN reason TEXT NOT NULL DEFAULT '';
UPDATE policy SET at = audit.at, author = audit.who FROM audit
    WHERE audit.what = 'policy.set' AND audit.subject = 'policy:' || policy.tailnet || ':' || policy.version;
UPDATE user SET body = json_set(body, '$.role', 'owner')
    WHERE id IN (SELECT min(id) FROM user GROUP BY tailnet) AND body ->> 'role' IS NULL;
