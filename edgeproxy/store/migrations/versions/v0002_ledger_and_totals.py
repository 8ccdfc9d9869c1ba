"""What a key may be told to do, its totals, and its ledger: credits, and corrections of what was charged.

Totals are filled from the daily sums, so that they are right from the first flush on.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    ALTER TABLE keys
        ADD COLUMN mode text NOT NULL DEFAULT 'enforce' CHECK (mode IN ('enforce', 'observe')),
        ADD COLUMN reserve text NOT NULL DEFAULT 'estimate' CHECK (reserve IN ('estimate', 'strict')),
        ADD COLUMN on_limit text NOT NULL DEFAULT 'refuse' CHECK (on_limit IN ('refuse', 'shrink')),
        ADD COLUMN prepaid boolean NOT NULL DEFAULT false
    """,
    """
    CREATE TABLE usage_totals (
        key_id uuid PRIMARY KEY,
        requests bigint NOT NULL,
        input_tokens bigint NOT NULL,
        output_tokens bigint NOT NULL
    )
    """,
    """
    COMMENT ON TABLE usage_totals IS
    'Sums of usage_events by key, added in the transaction that adds the rows: a balance is credits minus these.'
    """,
    """
    INSERT INTO usage_totals (key_id, requests, input_tokens, output_tokens)
    SELECT key_id, sum(requests), sum(input_uncached + cache_read + cache_write), sum(output)
    FROM usage_daily GROUP BY key_id
    """,
    """
    CREATE TABLE ledger (
        key_id uuid NOT NULL,
        seq bigint NOT NULL CHECK (seq >= 1),
        kind text NOT NULL CHECK (kind IN ('credit', 'correction')),
        request_id uuid,
        requests bigint NOT NULL DEFAULT 0,
        input_tokens bigint NOT NULL DEFAULT 0,
        output_tokens bigint NOT NULL DEFAULT 0,
        tokens bigint NOT NULL DEFAULT 0,
        reference text CHECK (char_length(reference) BETWEEN 1 AND 200),
        at timestamptz NOT NULL DEFAULT now(),
        applied boolean NOT NULL DEFAULT false,
        PRIMARY KEY (key_id, seq),
        CHECK ((kind = 'credit') = (tokens > 0)),
        CHECK ((kind = 'correction') = (request_id IS NOT NULL))
    )
    """,
    "CREATE UNIQUE INDEX ledger_by_reference ON ledger (key_id, reference) WHERE reference IS NOT NULL",
    "CREATE INDEX ledger_not_applied ON ledger (key_id, seq) WHERE NOT applied",
    """
    COMMENT ON TABLE ledger IS
    'What changes a key''s counters beside its requests, numbered per key and applied to Redis in that order.'
    """,
)


def upgrade() -> None:
    """Add the columns and tables, and fill the totals."""
    for statement in _STATEMENTS:
        op.execute(statement)
