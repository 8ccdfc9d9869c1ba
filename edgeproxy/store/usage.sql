-- name: add_events
-- A batch of events in one round trip: rows that are new, and their daily sums and totals from exactly those rows.
-- Repeated ids add nothing. Keys are held in place: an event of an erased key is not stored, and an erasure that
-- comes second finds all rows. Ordered, so that two flushes of the same events wait for each other in one direction.
WITH incoming AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::smallint[], $6::bigint[], $7::bigint[],
        $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::boolean[]
    ) AS row (
        id, key_id, at, model, status, input_uncached, cache_read, cache_write, output, reasoning, latency_ms, estimated
    )
),
known AS (
    SELECT id FROM keys WHERE id IN (SELECT key_id FROM incoming) FOR KEY SHARE
),
added AS (
    INSERT INTO usage_events (
        id, key_id, at, model, status, input_uncached, cache_read, cache_write, output, reasoning, latency_ms, estimated
    )
    SELECT incoming.* FROM incoming JOIN known ON known.id = incoming.key_id ORDER BY incoming.id
    ON CONFLICT DO NOTHING
    RETURNING key_id, at, model, input_uncached, cache_read, cache_write, output, reasoning
),
summed AS (
    INSERT INTO usage_daily AS daily (
        key_id, day, model, requests, input_uncached, cache_read, cache_write, output, reasoning
    )
    SELECT key_id, (at AT TIME ZONE 'UTC')::date, model, count(*),
        sum(input_uncached), sum(cache_read), sum(cache_write), sum(output), sum(reasoning)
    FROM added GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (key_id, day, model) DO UPDATE SET
        requests = daily.requests + excluded.requests,
        input_uncached = daily.input_uncached + excluded.input_uncached,
        cache_read = daily.cache_read + excluded.cache_read,
        cache_write = daily.cache_write + excluded.cache_write,
        output = daily.output + excluded.output,
        reasoning = daily.reasoning + excluded.reasoning
    RETURNING 1
),
-- After the daily sums, which the condition makes certain: all who change both take them in this order.
totalled AS (
    INSERT INTO usage_totals AS total (key_id, requests, input_tokens, output_tokens)
    SELECT key_id, count(*), sum(input_uncached + cache_read + cache_write), sum(output)
    FROM added WHERE (SELECT count(*) FROM summed) > 0 GROUP BY key_id ORDER BY key_id
    ON CONFLICT (key_id) DO UPDATE SET
        requests = total.requests + excluded.requests,
        input_tokens = total.input_tokens + excluded.input_tokens,
        output_tokens = total.output_tokens + excluded.output_tokens
)
SELECT
    (SELECT count(*) FROM added) AS added,
    (SELECT count(*) FROM incoming WHERE key_id NOT IN (SELECT id FROM known)) AS unknown;

-- name: add_dead_letters
-- Where an entry was that could not be stored, and why. A key that was erased is not named.
WITH known AS (
    SELECT id FROM keys WHERE id = ANY($3::uuid[]) FOR KEY SHARE
),
added AS (
    INSERT INTO dead_letters (partition, stream_id, key_id, reason)
    SELECT $1, letter.stream_id, known.id, letter.reason
    FROM unnest($2::text[], $3::uuid[], $4::text[]) AS letter (stream_id, key_id, reason)
    LEFT JOIN known ON known.id = letter.key_id
    ON CONFLICT DO NOTHING
    RETURNING 1
)
SELECT count(*) FROM added;

-- name: recent
-- The latest requests of a key.
SELECT id, key_id, model, status, input_uncached, cache_read, cache_write, output, reasoning, latency_ms, estimated
FROM usage_events WHERE key_id = $1 ORDER BY id DESC LIMIT $2;

-- name: daily
-- Sums per day and model, the latest days first.
SELECT day, model, requests, input_uncached, cache_read, cache_write, output, reasoning
FROM usage_daily WHERE key_id = $1 AND day >= $2 ORDER BY day DESC, model;

-- name: totals
-- What PostgreSQL holds of a key altogether.
SELECT requests, input_tokens, output_tokens FROM usage_totals WHERE key_id = $1;

-- name: read_to_correct
-- One stored request. Whoever corrects holds its key's row, so that nobody else does.
SELECT id, key_id, model, status, input_uncached, cache_read, cache_write, output, reasoning, latency_ms, estimated
FROM usage_events WHERE id = $1;

-- name: correct_event
-- The final figures of a request in place of an estimate.
UPDATE usage_events
SET model = $2, status = $3, input_uncached = $4, cache_read = $5, cache_write = $6, output = $7, reasoning = $8,
    latency_ms = $9, estimated = $10
WHERE id = $1;

-- name: correct_daily
-- Differences of a day by model: where the model differs, all of it goes from one to the other. Ordered as the flush
-- orders them.
INSERT INTO usage_daily AS daily (
    key_id, day, model, requests, input_uncached, cache_read, cache_write, output, reasoning
)
SELECT $1, ($2::timestamptz AT TIME ZONE 'UTC')::date, row.model,
    sum(requests), sum(input_uncached), sum(cache_read), sum(cache_write), sum(output), sum(reasoning)
FROM unnest($3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[])
    AS row (model, requests, input_uncached, cache_read, cache_write, output, reasoning)
GROUP BY row.model ORDER BY row.model
ON CONFLICT (key_id, day, model) DO UPDATE SET
    requests = daily.requests + excluded.requests,
    input_uncached = daily.input_uncached + excluded.input_uncached,
    cache_read = daily.cache_read + excluded.cache_read,
    cache_write = daily.cache_write + excluded.cache_write,
    output = daily.output + excluded.output,
    reasoning = daily.reasoning + excluded.reasoning;

-- name: delete_empty_daily
-- A sum of which nothing is left; whoever waits to add to it begins it again.
DELETE FROM usage_daily WHERE key_id = $1 AND day = ($2::timestamptz AT TIME ZONE 'UTC')::date AND requests = 0;

-- name: correct_totals
-- The same differences over all days and models.
UPDATE usage_totals
SET requests = requests + $2, input_tokens = input_tokens + $3, output_tokens = output_tokens + $4
WHERE key_id = $1;

-- name: delete_events
-- One batch of a key's rows, so that no statement runs long and no lock is held long.
DELETE FROM usage_events WHERE key_id = $1 AND id <= coalesce(
    (SELECT id FROM usage_events WHERE key_id = $1 ORDER BY id OFFSET $2 LIMIT 1),
    'ffffffff-ffff-ffff-ffff-ffffffffffff'
);

-- name: delete_sums
-- What was added up from a key's rows.
DELETE FROM usage_daily WHERE key_id = $1;

-- name: delete_totals
-- And what was added up altogether.
DELETE FROM usage_totals WHERE key_id = $1;

-- name: delete_dead_letters
-- What names a key among the entries that could not be stored.
DELETE FROM dead_letters WHERE key_id = $1;
