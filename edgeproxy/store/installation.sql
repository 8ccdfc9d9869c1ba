-- name: claim
-- The first start fixes what every later one has to agree with.
INSERT INTO install (partitions, pepper_fingerprint) VALUES ($1, $2) ON CONFLICT (only_row) DO NOTHING;

-- name: read
-- Locked, so that two starts with different peppers do not both go on.
SELECT partitions, pepper_fingerprint FROM install FOR UPDATE;

-- name: rotate
-- The pepper that new keys are issued under has changed.
UPDATE install SET pepper_fingerprint = $1;

-- name: columns
-- Everything that a row could be kept in. From the catalogue: information_schema shows only what the user may read, and
-- no materialised views. A partition has the columns of its table.
SELECT relname || '.' || attname AS name FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid
WHERE relnamespace = 'edgeproxy'::regnamespace AND relkind IN ('r', 'p', 'm', 'f') AND NOT relispartition
    AND attnum > 0 AND NOT attisdropped
ORDER BY name LIMIT 10000;
