-- name: insert
-- A new key, active, version 1.
INSERT INTO keys (
    id, name, prefix, digest, status, version, limits, concurrency, models, created_at, expires_at,
    mode, reserve, on_limit, prepaid
)
VALUES ($1, $2, $3, $4, 'active', 1, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- name: read
-- One key.
SELECT * FROM keys WHERE id = $1;

-- name: read_to_publish
-- One key, held in place while it is published: an erasure waits, so that no key is published after it was erased.
SELECT * FROM keys WHERE id = $1 FOR KEY SHARE;

-- name: read_each_to_publish
-- Several keys, held in the same way; in one order, so that two who hold several wait for each other in one direction.
SELECT * FROM keys WHERE id = ANY($1::uuid[]) ORDER BY id FOR KEY SHARE;

-- name: read_to_change
-- One key, for a change: the second of two changes sees the first.
SELECT * FROM keys WHERE id = $1 FOR NO KEY UPDATE;

-- name: find
-- The id behind what a person typed; two rows say that it is ambiguous.
SELECT id FROM keys WHERE prefix = $1 OR name = $1 LIMIT 2;

-- name: page
-- Keys in order of creation (a UUIDv7 begins with its time).
SELECT * FROM keys WHERE id > $1 ORDER BY id LIMIT $2;

-- name: update
-- What may change of a key. Its digest and prefix never do, nor whether it is prepaid.
UPDATE keys
SET name = $2, status = $3, version = $4, limits = $5, concurrency = $6, models = $7, expires_at = $8, revoked_at = $9,
    mode = $10, reserve = $11, on_limit = $12
WHERE id = $1;

-- name: delete
-- Waits for flushes and publications that hold the key, and lets none begin after.
DELETE FROM keys WHERE id = $1;
