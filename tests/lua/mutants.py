"""Mistakes that the scripts could hold: each is one change of one script, and has to be found by the checks.

A change that is not found would say that the checks do not look there. `test_mutants.py` makes each of them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """`text`, which is in the script exactly once, is replaced by `replacement`."""

    breaks: str
    script: str
    text: str
    replacement: str


MUTANTS = (
    Mutant(
        "B buckets count, not B + 1: twice the limit passes within a window",
        "ring",
        "local oldest_live = bucket - state[window + BUCKETS]",
        "local oldest_live = bucket - state[window + BUCKETS] + 1",
    ),
    Mutant(
        "a clock that goes back opens a bucket again",
        "ring",
        "if bucket <= newest then return nil end",
        "if bucket == newest then return nil end",
    ),
    Mutant(
        "what is left after a time is told a bucket too early",
        "ring",
        "return (bucket + state[window + BUCKETS] + 1) * state[window + WIDTH]",
        "return (bucket + state[window + BUCKETS]) * state[window + WIDTH]",
    ),
    Mutant(
        "an open bucket that closes is forgotten",
        "ring",
        "      live[#live + 1] = newest\n      live[#live + 1] = current\n",
        "",
    ),
    Mutant(
        "a refund goes to the bucket of now",
        "resolve",
        "if bucket == state[window + NEWEST] then",
        "if bucket then",
    ),
    Mutant(
        "late excess is not charged",
        "resolve",
        "      charge(state, window, amount)\n",
        "",
    ),
    Mutant(
        "late excess is charged to a bucket that is over",
        "resolve",
        "      advance(state, window, ring, now, changes)\n",
        "",
    ),
    Mutant(
        "buckets that were made anew are given back what others were charged",
        "resolve",
        "elseif amount < 0 and state[window + SHAPED] <= version then",
        "elseif amount < 0 and state[window + SINCE] <= version then",
    ),
    Mutant(
        "a resolved request stays open",
        "resolve",
        "state[OPEN] = math.max(state[OPEN] - 1, 0)",
        "state[OPEN] = math.max(state[OPEN], 0)",
    ),
    Mutant(
        "what was held is never let go",
        "resolve",
        "state[HELD] = math.max(state[HELD] - held, 0)",
        "state[HELD] = math.max(state[HELD], 0)",
    ),
    Mutant(
        "what was used does not leave the balance",
        "resolve",
        "state[BALANCE] = state[BALANCE] - (input_tokens + output_tokens)",
        "state[BALANCE] = state[BALANCE]",
    ),
    Mutant(
        "a settle can be repeated",
        "reservation",
        "redis.call('SET', key, cmsgpack.pack(state, now), 'PX', TOMBSTONE_MS)",
        "redis.call('DEL', key)",
    ),
    Mutant(
        "one request more than the cap is open",
        "reserve",
        "state[OPEN] >= state[CONCURRENCY]",
        "state[OPEN] > state[CONCURRENCY]",
    ),
    Mutant(
        "a balance is used by all that are open at once",
        "reserve",
        "cost[TOKENS] > state[BALANCE] - state[HELD]",
        "cost[TOKENS] > state[BALANCE]",
    ),
    Mutant(
        "a worker admits by limits that no longer hold",
        "reserve",
        "    if known ~= state[VERSION] and known ~= NONE then return {STALE, now} end\n",
        "",
    ),
    Mutant(
        "a revoked key is admitted",
        "reserve",
        "    if state[STATUS] ~= ACTIVE then return {DISABLED, now} end\n",
        "",
    ),
    Mutant(
        "the state of another layout is read as if it were ours",
        "reserve",
        "  if state[LAYOUT] ~= LAYOUT_VERSION then return {FOREIGN_LAYOUT, now} end\n",
        "",
    ),
    Mutant(
        "a repeated reserve is charged twice",
        "reserve",
        "if redis.call('EXISTS', KEYS[1]) == 1 then return {DUPLICATE, now} end\n",
        "",
    ),
    Mutant(
        "a scope that only observes lets pass what another refuses",
        "reserve",
        "local verdict = refused or observed",
        "refused = refused and not observed and refused\nlocal verdict = refused or observed",
    ),
    Mutant(
        "the window that waits longest does not decide when",
        "reserve",
        "weight > verdicts[mode][1]",
        "weight < verdicts[mode][1]",
    ),
    Mutant(
        "an event that comes too late is lost",
        "settle",
        "  if told then redis.call('XADD', KEYS[4], '*', 'e', ARGV[7]) end\n",
        "",
    ),
    Mutant(
        "a request that never was is counted",
        "settle",
        "elseif not cancelled then",
        "else",
    ),
    Mutant(
        "a reaped reservation is settled once more",
        "settle",
        "if state ~= STATE_PENDING then return {DUPLICATE, now} end",
        "if state ~= STATE_PENDING then return {RESOLVED, now} end",
    ),
    Mutant(
        "a heartbeat that comes late lowers what was used",
        "heartbeat",
        "math.max(reservation[BEAT_OUTPUT], tonumber(ARGV[told + 2]))",
        "tonumber(ARGV[told + 2])",
    ),
    Mutant(
        "a heartbeat renews no lease",
        "heartbeat",
        "  redis.call('ZADD', KEYS[1], ends_ms, beats[i][3])\n",
        "",
    ),
    Mutant(
        "a reservation is reaped although its lease was renewed",
        "reap",
        "if ends_ms and tonumber(ends_ms) > now then return {ALIVE} end\n",
        "",
    ),
    Mutant(
        "an entry of the ledger counts twice",
        "ledger",
        "if entry <= state[LEDGER] then",
        "if entry < state[LEDGER] then",
    ),
    Mutant(
        "an entry of the ledger is passed over",
        "ledger",
        "  if entry > state[LEDGER] + 1 then return state, GAP end\n",
        "",
    ),
    Mutant(
        "a correction makes room in a bucket that it does not know",
        "adjust",
        "  if amount > 0 then\n",
        "  if amount ~= 0 then\n",
    ),
    Mutant(
        "a window of another length begins with nothing",
        "publish",
        "    if source then take_over(source, fields) end\n",
        "",
    ),
    Mutant(
        "what is taken over leaves too early",
        "publish",
        "math.floor(((bucket + 1) * old[source + WIDTH] - 1) / width)",
        "math.floor(bucket * old[source + WIDTH] / width)",
    ),
    Mutant(
        "a clock that went back lets what is taken over leave too early",
        "publish",
        "new[SEEN_MS] = math.max(old[SEEN_MS], now)",
        "new[SEEN_MS] = now",
    ),
    Mutant(
        "an older version brings back limits that were lowered",
        "publish",
        "if old[VERSION] >= version then return {KEPT} end\n",
        "",
    ),
    Mutant(
        "what was counted while it was rebuilt is lost",
        "rebuild",
        "if (packed or '') ~= ARGV[1] then return {CHANGED} end\n",
        "",
    ),
)
