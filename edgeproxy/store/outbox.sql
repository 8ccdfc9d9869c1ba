-- name: add
-- The latest change of a key replaces the one before; an erasure is the last.
INSERT INTO outbox (key_id, version, action, digest) VALUES ($1, $2, $3, $4)
ON CONFLICT (key_id) DO UPDATE SET version = excluded.version, action = excluded.action
WHERE outbox.action = 'publish' AND outbox.version <= excluded.version;

-- name: waiting
-- What Redis has not confirmed, oldest first.
SELECT key_id, version, action, digest FROM outbox ORDER BY created_at, key_id LIMIT $1;

-- name: remove_published
-- Unless a later change came in between.
DELETE FROM outbox WHERE key_id = $1 AND version <= $2 AND action = 'publish';

-- name: remove_erased
-- Nothing comes after an erasure.
DELETE FROM outbox WHERE key_id = $1;
