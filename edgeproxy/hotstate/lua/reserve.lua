-- reserve.lua: charge the estimate of one request to every window of its scopes, or to none.
--
-- KEYS  1 reservation (STRING)   2 leases of the partition (ZSET)
--       then for each scope: state (STRING), ring (HASH)
-- ARGV  1 now, Unix ms; empty: the clock of Redis   2 request id   3 lease, ms
--       4 requests   5 input tokens   6 output tokens, as estimated
--       then for each scope: the version of it that the caller knows
-- REPLY status, now, limit, retry ms, then for each window of each scope: remaining, reset ms
--       (only status and now, when the status is neither ADMITTED nor REFUSED)
--   0 REFUSED      limit: position from 0, over all scopes, of the window that makes the request wait longest;
--                  retry ms: when it fits if nothing else happens, exactly, or -1: never, it is larger than the limit.
--                  When only concurrency refuses: limit is -1 for the first scope, -2 for the second, ...; retry is -2
--   1 ADMITTED     limit and retry ms are 0
--   2 DUPLICATE    this request id was reserved before, and may be settled since
--   3 UNPUBLISHED  a scope has no state: it is published or rebuilt by others, never made up here
--   4 STALE        a scope changed since the caller read it
--   5 DISABLED     a scope is revoked
--   6 LAYOUT       a state was written by an incompatible version of this program
--
-- A reservation is a flat cmsgpack list: 1 (pending), now, requests, input tokens, output tokens, then for each scope
-- version, number of windows, and for each window its id and the index of the bucket that was charged.
--
-- A script does not roll back. So everything is read and decided first; from the line WRITES on nothing can fail but
-- the first write, which Redis refuses when memory is full.

-- include ring

local REFUSED, ADMITTED, DUPLICATE, UNPUBLISHED, STALE, DISABLED, FOREIGN_LAYOUT = 0, 1, 2, 3, 4, 5, 6
local PENDING = 1
local NEVER_FITS, NO_TIME_HELPS = -1, -2
local OPTIONS = 6                -- ARGV before the versions

local now = clock(ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 1 then return {DUPLICATE, now} end

local requests, input_tokens, output_tokens = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local cost = by_dimension(requests, input_tokens, output_tokens)
local states, rings = {}, {}

for scope = 1, #ARGV - OPTIONS do
  local packed = redis.call('GET', KEYS[1 + 2 * scope])
  if not packed then return {UNPUBLISHED, now} end
  local state = {cmsgpack.unpack(packed)}
  if state[LAYOUT] ~= LAYOUT_VERSION then return {FOREIGN_LAYOUT, now} end
  if state[VERSION] ~= tonumber(ARGV[OPTIONS + scope]) then return {STALE, now} end
  if state[STATUS] ~= ACTIVE then return {DISABLED, now} end
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

-- Decide. Only the windows that refuse have to be looked at closely.
local changes = {}
local position, limit, retry = 0, 0, 0
for scope = 1, #states do
  local state, ring = states[scope], rings[scope]
  for window = FIRST_WINDOW, #state, WINDOW_FIELDS do
    local closed = advance(state, window, ring, now, changes)
    if cost[state[window + DIMENSION]] > state[window + AMOUNT] - state[window + SUM] then
      local wait = wait_ms(state, window, ring, closed)
      if retry ~= NEVER_FITS and (wait > retry or wait == NEVER_FITS) then limit, retry = position, wait end
    end
    position = position + 1
  end
end
for scope = 1, #states do
  local state = states[scope]
  if retry == 0 and state[CONCURRENCY] ~= NONE and state[OPEN] >= state[CONCURRENCY] then
    limit, retry = -scope, NO_TIME_HELPS
  end
end

local reply = {retry == 0 and ADMITTED or REFUSED, now, limit, retry}
local reservation = {PENDING, now, requests, input_tokens, output_tokens}
for scope = 1, #states do
  local state = states[scope]
  reservation[#reservation + 1] = state[VERSION]
  reservation[#reservation + 1] = (#state - FIRST_WINDOW + 1) / WINDOW_FIELDS
  for window = FIRST_WINDOW, #state, WINDOW_FIELDS do
    if retry == 0 then charge(state, window, cost[state[window + DIMENSION]]) end
    reservation[#reservation + 1] = state[window + ID]
    reservation[#reservation + 1] = state[window + NEWEST]
    reply[#reply + 1] = math.max(state[window + AMOUNT] - state[window + SUM], 0)
    reply[#reply + 1] = reset_ms(state, window, now)
  end
  state[OPEN] = state[OPEN] + 1
end
if retry ~= 0 then return reply end

-- WRITES. The first is a command that Redis refuses when memory is full, so that then nothing is admitted; the
-- deletions among the others would not be, and a script that has written may go on writing.
redis.call('SET', KEYS[1], cmsgpack.pack(unpack(reservation)))
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[2])
for scope = 1, #states do redis.call('SET', KEYS[1 + 2 * scope], cmsgpack.pack(unpack(states[scope]))) end
write_rings(changes)
return reply
