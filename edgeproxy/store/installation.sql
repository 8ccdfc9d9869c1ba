-- name: claim
-- The first start fixes what every later one has to agree with.
INSERT INTO install (partitions, pepper_fingerprint) VALUES ($1, $2) ON CONFLICT (only_row) DO NOTHING;

-- name: read
-- Locked, so that two starts with different peppers do not both go on.
SELECT partitions, pepper_fingerprint FROM install FOR UPDATE;

-- name: rotate
-- The pepper that new keys are issued under has changed.
UPDATE install SET pepper_fingerprint = $1;
