-- name: lock
-- One creation at a time: IF NOT EXISTS alone does not keep two sessions from colliding.
SELECT pg_advisory_xact_lock(1886544500);

-- name: exists
-- Whether a month's table is there. Not by to_regclass: its cache does not see what was created while we waited.
SELECT EXISTS (SELECT FROM pg_class WHERE relname = $1 AND relnamespace = 'edgeproxy'::regnamespace);
