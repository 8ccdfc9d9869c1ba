-- name: add
-- Counts are absolute, so that the same ones may be written again; an erased key's are left out.
WITH incoming AS (
    SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::smallint[], $4::bigint[])
        AS row (key_id, minute, status, count)
),
known AS (
    SELECT id FROM keys WHERE id IN (SELECT key_id FROM incoming) FOR KEY SHARE
)
INSERT INTO refusals AS stored (key_id, minute, status, count)
SELECT incoming.* FROM incoming JOIN known ON known.id = incoming.key_id ORDER BY key_id, minute, status
ON CONFLICT (key_id, minute, status) DO UPDATE SET count = greatest(stored.count, excluded.count);

-- name: delete
-- A key's own.
DELETE FROM refusals WHERE key_id = $1;
