-- name: add
-- The next entry of a key, whose row the caller holds: so numbers have no gap, and are committed in order.
INSERT INTO ledger (key_id, seq, kind, request_id, requests, input_tokens, output_tokens, tokens, reference)
SELECT $1, coalesce(max(seq), 0) + 1, $2, $3, $4, $5, $6, $7, $8 FROM ledger WHERE key_id = $1
RETURNING seq;

-- name: credited
-- All that was ever credited to a key, and the number of its last entry.
SELECT coalesce(sum(tokens), 0)::bigint AS tokens, coalesce(max(seq), 0) AS seq FROM ledger WHERE key_id = $1;

-- name: find
-- What was credited under a reference.
SELECT tokens FROM ledger WHERE key_id = $1 AND reference = $2;

-- name: after
-- A key's entries in order, also those that were applied: a Redis that was set back needs them again.
SELECT seq, kind, requests, input_tokens, output_tokens, tokens FROM ledger
WHERE key_id = $1 AND seq > $2 ORDER BY seq LIMIT $3;

-- name: first_waiting
-- The number of a key's first entry that Redis has not confirmed.
SELECT min(seq) FROM ledger WHERE key_id = $1 AND NOT applied;

-- name: waiting
-- Keys with entries that Redis has not confirmed.
SELECT DISTINCT key_id FROM ledger WHERE NOT applied AND key_id > $1 ORDER BY key_id LIMIT $2;

-- name: mark_applied
-- Redis has all entries up to this one.
UPDATE ledger SET applied = true WHERE key_id = $1 AND seq <= $2 AND NOT applied;

-- name: delete
-- A key's own.
DELETE FROM ledger WHERE key_id = $1;
