-- name: key_ids
-- Keys in order of creation: their ids alone, so that all of them fit into memory.
SELECT id FROM keys WHERE id > $1 ORDER BY id LIMIT $2;

-- name: known
-- Which of these ids and digests are those of keys.
SELECT id::text AS known FROM keys WHERE id = ANY($1::uuid[])
UNION ALL
SELECT digest FROM keys WHERE digest = ANY($2::text[]);

-- name: sums
-- What keys should have in Redis, each asked with the number of the last ledger entry that is applied there: credits up
-- to it, and corrections after it, which are in the totals here already.
SELECT key.id, key.version, key.digest, key.prepaid,
    coalesce(total.requests, 0) AS requests,
    coalesce(total.input_tokens, 0) AS input_tokens,
    coalesce(total.output_tokens, 0) AS output_tokens,
    coalesce(entries.last, 0) AS ledger,
    coalesce(entries.confirmed, 0) AS confirmed_ledger,
    coalesce(entries.credits, 0)::bigint AS credits,
    coalesce(entries.applied_credits, 0)::bigint AS applied_credits,
    coalesce(entries.requests, 0)::bigint AS corrected_requests,
    coalesce(entries.input_tokens, 0)::bigint AS corrected_input_tokens,
    coalesce(entries.output_tokens, 0)::bigint AS corrected_output_tokens
FROM unnest($1::uuid[], $2::bigint[]) AS asked (key_id, ledger)
JOIN keys AS key ON key.id = asked.key_id
LEFT JOIN usage_totals AS total ON total.key_id = asked.key_id
CROSS JOIN LATERAL (
    SELECT max(seq) AS last, max(seq) FILTER (WHERE applied) AS confirmed, sum(tokens) AS credits,
        sum(tokens) FILTER (WHERE seq <= asked.ledger) AS applied_credits,
        sum(requests) FILTER (WHERE seq > asked.ledger) AS requests,
        sum(input_tokens) FILTER (WHERE seq > asked.ledger) AS input_tokens,
        sum(output_tokens) FILTER (WHERE seq > asked.ledger) AS output_tokens
    FROM ledger WHERE key_id = asked.key_id
) AS entries;

-- name: stored_ids
-- Which of these requests have their row.
SELECT id FROM usage_events WHERE id = ANY($1::uuid[]);

-- name: last_used
-- When the latest request of each key was over.
SELECT asked.key_id, last.at, last.latency_ms
FROM unnest($1::uuid[]) AS asked (key_id)
CROSS JOIN LATERAL (
    SELECT at, latency_ms FROM usage_events WHERE key_id = asked.key_id ORDER BY id DESC LIMIT 1
) AS last;

-- name: buckets
-- What requests since some id used, by buckets of a width in ms. Each window is looked up in the index by itself: it is
-- a small part of a large table.
SELECT asked.position, used.bucket, used.requests, used.input_tokens, used.output_tokens
FROM unnest($1::integer[], $2::uuid[], $3::bigint[], $4::uuid[]) AS asked (position, key_id, width_ms, since)
CROSS JOIN LATERAL (
    SELECT (extract(epoch FROM at) * 1000)::bigint / asked.width_ms AS bucket, count(*) AS requests,
        sum(input_uncached + cache_read + cache_write)::bigint AS input_tokens, sum(output)::bigint AS output_tokens
    FROM usage_events WHERE key_id = asked.key_id AND id >= asked.since GROUP BY 1
) AS used
ORDER BY asked.position, used.bucket;
