"""Keys, usage events and their daily sums, refusals, and what still has to be published.

Nothing here can hold content, an address or the name of a person: texts are a key's name (the operator's words),
digests, model names and reason codes.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    CREATE TABLE install (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        partitions integer NOT NULL CHECK (partitions BETWEEN 1 AND 64),
        pepper_fingerprint text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "COMMENT ON TABLE install IS 'What is fixed at the first start: one row.'",
    """
    CREATE TABLE keys (
        id uuid PRIMARY KEY,
        name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
        prefix text NOT NULL,
        digest text NOT NULL UNIQUE CHECK (digest ~ '^[0-9a-f]{64}$'),
        status text NOT NULL CHECK (status IN ('active', 'revoked')),
        version integer NOT NULL CHECK (version >= 1),
        limits text[] NOT NULL,
        concurrency integer CHECK (concurrency >= 1),
        models text[] NOT NULL,
        created_at timestamptz NOT NULL,
        expires_at timestamptz,
        revoked_at timestamptz,
        CHECK ((status = 'revoked') = (revoked_at IS NOT NULL))
    )
    """,
    "CREATE INDEX keys_by_name ON keys (name)",
    "CREATE INDEX keys_by_prefix ON keys (prefix)",
    """
    COMMENT ON TABLE keys IS
    'API keys. The secret itself is never stored: a keyed digest and the part that may be shown.'
    """,
    """
    CREATE TABLE outbox (
        key_id uuid PRIMARY KEY,
        version integer NOT NULL,
        action text NOT NULL CHECK (action IN ('publish', 'erase')),
        digest text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    COMMENT ON TABLE outbox IS
    'Changes of keys that Redis has not confirmed yet, one per key. No foreign key: an erasure outlives its key.'
    """,
    """
    CREATE TABLE usage_events (
        id uuid PRIMARY KEY,
        key_id uuid NOT NULL,
        at timestamptz NOT NULL,
        model text NOT NULL CHECK (char_length(model) <= 256),
        status smallint NOT NULL CHECK (status BETWEEN 100 AND 599),
        input_uncached bigint NOT NULL CHECK (input_uncached >= 0),
        cache_read bigint NOT NULL CHECK (cache_read >= 0),
        cache_write bigint NOT NULL CHECK (cache_write >= 0),
        output bigint NOT NULL CHECK (output >= 0),
        reasoning bigint NOT NULL CHECK (reasoning >= 0),
        latency_ms bigint NOT NULL CHECK (latency_ms >= 0),
        estimated boolean NOT NULL
    ) PARTITION BY RANGE (id)
    """,
    "CREATE INDEX usage_events_by_key ON usage_events (key_id, id)",
    """
    COMMENT ON TABLE usage_events IS
    'One row per admitted request. The id is the request''s id, a UUIDv7: partitions by month are ranges of it.'
    """,
    """
    CREATE TABLE usage_daily (
        key_id uuid NOT NULL,
        day date NOT NULL,
        model text NOT NULL,
        requests bigint NOT NULL,
        input_uncached bigint NOT NULL,
        cache_read bigint NOT NULL,
        cache_write bigint NOT NULL,
        output bigint NOT NULL,
        reasoning bigint NOT NULL,
        PRIMARY KEY (key_id, day, model)
    )
    """,
    """
    COMMENT ON TABLE usage_daily IS
    'Sums of usage_events by key, day (UTC) and model, added in the transaction that adds the rows.'
    """,
    """
    CREATE TABLE refusals (
        key_id uuid NOT NULL,
        minute timestamptz NOT NULL,
        status smallint NOT NULL,
        count bigint NOT NULL CHECK (count >= 1),
        PRIMARY KEY (key_id, minute, status)
    )
    """,
    "COMMENT ON TABLE refusals IS 'How often a known key was refused, by minute and status.'",
    """
    CREATE TABLE dead_letters (
        partition smallint NOT NULL,
        stream_id text NOT NULL,
        key_id uuid,
        reason text NOT NULL CHECK (reason IN ('undecodable', 'time_out_of_range', 'refused')),
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (partition, stream_id)
    )
    """,
    "CREATE INDEX dead_letters_by_key ON dead_letters (key_id)",
    """
    COMMENT ON TABLE dead_letters IS
    'Entries of the event streams that could not be stored: where they were and why, not what they held.'
    """,
)


def upgrade() -> None:
    """Create the tables, their indexes and what is said about them."""
    for statement in _STATEMENTS:
        op.execute(statement)
