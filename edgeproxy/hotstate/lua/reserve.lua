-- reserve.lua: charge the estimate of one request to every window of its scopes, or to none.
--
-- KEYS  1 reservation (STRING)   2 leases of the partition (ZSET)
--       then for each scope: state (STRING), ring (HASH)
-- ARGV  1 now, Unix ms; empty: the clock of Redis   2 request id   3 lease, ms
--       4 requests   5 input tokens   6 output tokens, as estimated
--       7 `admit` or `announce`   8 note, bytes for whoever has to resolve it in the caller's place
--       then for each scope: the version of it that the caller knows, or -1: whatever holds
-- REPLY status, now, reason, position, retry ms, balance left of the first scope (empty unless prepaid),
--       then for each window of each scope: remaining, reset ms
--       (only status and now, when the status is none of REFUSED, ADMITTED, OBSERVED)
--   0 REFUSED      reason 1: a window; position from 0, over all scopes, of the one that makes the request wait
--                  longest; retry ms: when it fits if nothing else happens, exactly, or -1: never, it is larger than
--                  the limit
--                  reason 2: concurrency, reason 3: balance; position from 0 of the scope; retry is -2: no time helps
--                  Of several reasons the one is told that time helps least, and concurrency last
--   1 ADMITTED     reason, position and retry ms are 0
--   2 DUPLICATE    this request id was reserved before, and may be settled since
--   3 UNPUBLISHED  a scope has no state: it is published or rebuilt by others, never made up here
--   4 STALE        a scope changed since the caller read it
--   5 DISABLED     a scope is revoked
--   6 LAYOUT       a state was written by an incompatible version of this program
--   7 OBSERVED     admitted although a limit is reached: the scope only observes; the rest as with REFUSED
--
-- announce: the request was admitted before, and Redis lost it; it runs. So it is charged whatever limits, version and
-- status say.
--
-- A script does not roll back. So everything is read and decided first; from the line WRITES on nothing can fail but
-- the first write, which Redis refuses when memory is full.

-- include ring
-- include reservation

local REFUSED, ADMITTED, DUPLICATE, UNPUBLISHED, STALE, DISABLED, FOREIGN_LAYOUT, OBSERVED = 0, 1, 2, 3, 4, 5, 6, 7
local BY_NOTHING, BY_WINDOW, BY_CONCURRENCY, BY_BALANCE = 0, 1, 2, 3
local NEVER_FITS, NO_TIME_HELPS = -1, -2
local OPTIONS = 8                -- ARGV before the versions

local now = clock(ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 1 then return {DUPLICATE, now} end

local announced = ARGV[7] == 'announce'
local requests, input_tokens, output_tokens = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local cost = by_dimension(requests, input_tokens, output_tokens)
local states, rings = {}, {}

for scope = 1, #ARGV - OPTIONS do
  local packed = redis.call('GET', KEYS[1 + 2 * scope])
  if not packed then return {UNPUBLISHED, now} end
  local state = {cmsgpack.unpack(packed)}
  if state[LAYOUT] ~= LAYOUT_VERSION then return {FOREIGN_LAYOUT, now} end
  if not announced then
    local known = tonumber(ARGV[OPTIONS + scope])
    if known ~= state[VERSION] and known ~= NONE then return {STALE, now} end
    if state[STATUS] ~= ACTIVE then return {DISABLED, now} end
  end
  states[scope], rings[scope] = state, KEYS[2 + 2 * scope]
end

-- In how many ms the request fits into a window that has no room for it now: when enough of the oldest buckets left.
local function wait_ms(state, window, ring, closed)
  local amount = cost[state[window + DIMENSION]]
  if amount > state[window + AMOUNT] then return NEVER_FITS end
  local missing = amount - (state[window + AMOUNT] - state[window + SUM])
  closed = closed or closed_buckets(state, window, ring)
  for i = 1, #closed, 2 do
    missing = missing - closed[i + 1]
    if missing <= 0 then return leaves_ms(state, window, closed[i]) - now end
  end
  return leaves_ms(state, window, state[window + NEWEST]) - now
end

-- The verdict of the scopes that enforce, and that of those that observe: weight, reason, position, retry ms.
local verdicts = {}
local function object(mode, weight, ...)
  if not verdicts[mode] or weight > verdicts[mode][1] then verdicts[mode] = {weight, ...} end
end

-- Decide. Only the windows that refuse have to be looked at closely.
local changes, position = {}, 0
for scope = 1, #states do
  local state, ring = states[scope], rings[scope]
  for window = FIRST_WINDOW, #state, WINDOW_FIELDS do
    local closed = advance(state, window, ring, now, changes)
    if cost[state[window + DIMENSION]] > state[window + AMOUNT] - state[window + SUM] and not announced then
      local wait = wait_ms(state, window, ring, closed)
      object(state[MODE], wait == NEVER_FITS and math.huge or wait, BY_WINDOW, position, wait)
    end
    position = position + 1
  end
  if state[PREPAID] == 1 and cost[TOKENS] > state[BALANCE] - state[HELD] and not announced then
    object(state[MODE], 2^53, BY_BALANCE, scope - 1, NO_TIME_HELPS)
  end
  if state[CONCURRENCY] ~= NONE and state[OPEN] >= state[CONCURRENCY] and not announced then
    object(state[MODE], 0, BY_CONCURRENCY, scope - 1, NO_TIME_HELPS)
  end
end

local refused, observed = verdicts[ENFORCE], verdicts[OBSERVE]
local verdict = refused or observed or {0, BY_NOTHING, 0, 0}
local status = refused and REFUSED or observed and OBSERVED or ADMITTED

local reply = {status, now, verdict[2], verdict[3], verdict[4], ''}
local reservation = {STATE_PENDING, now, requests, input_tokens, output_tokens, 0, 0, ARGV[8]}
for scope = 1, #states do
  local state = states[scope]
  reservation[#reservation + 1] = state[VERSION]
  reservation[#reservation + 1] = (#state - FIRST_WINDOW + 1) / WINDOW_FIELDS
  for window = FIRST_WINDOW, #state, WINDOW_FIELDS do
    if not refused then charge(state, window, cost[state[window + DIMENSION]]) end
    reservation[#reservation + 1] = state[window + ID]
    reservation[#reservation + 1] = state[window + NEWEST]
    reply[#reply + 1] = math.max(state[window + AMOUNT] - state[window + SUM], 0)
    reply[#reply + 1] = reset_ms(state, window, now)
  end
  if not refused then
    state[OPEN] = state[OPEN] + 1
    state[SEEN_MS] = math.max(state[SEEN_MS], now)
    if state[PREPAID] == 1 then state[HELD] = state[HELD] + cost[TOKENS] end
  end
end
local first = states[1]
if first and first[PREPAID] == 1 then reply[6] = first[BALANCE] - first[HELD] end
if refused then return reply end

-- WRITES. The first is a command that Redis refuses when memory is full, so that then nothing is admitted; the
-- deletions among the others would not be, and a script that has written may go on writing.
redis.call('SET', KEYS[1], cmsgpack.pack(unpack(reservation)))
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[2])
for scope = 1, #states do redis.call('SET', KEYS[1 + 2 * scope], cmsgpack.pack(unpack(states[scope]))) end
write_rings(changes)
return reply
