-- settle.lua: resolve a reservation, once: put the windows right, count the totals, record the usage event.
--
-- KEYS  1 reservation (STRING)   2 leases of the partition (ZSET)   3 usage events of the partition (STREAM)
--       then for each scope of the reserve, in its order: state (STRING), ring (HASH)
-- ARGV  1 now, Unix ms; empty: the clock of Redis   2 request id   3 `post` or `void`
--       4 requests   5 input tokens   6 output tokens, as really used; not read when void
--       7 the encoded usage event
-- REPLY status, now
--   1 RESOLVED
--   2 DUPLICATE   it was settled before; nothing changes
--   3 UNKNOWN     there is no such reservation (any more); nothing changes
--
-- post: what was really used replaces what was reserved. void: nothing was used, tokens go back, the request counts.
-- What was reserved too much goes back to the bucket that was charged, and nowhere else: once that bucket has left the
-- window, there is nothing to give back, and a younger bucket would let the same amount through a second time.
-- What was used beyond the reservation is charged to the bucket of now, even over the limit: it is used.
-- A scope that is gone, or a window that was published after the reservation was made, is left alone.
--
-- The resolved reservation stays for TOMBSTONE_MS as `2 (settled) or 3 (released), now`, so that a repetition is known
-- as one. What a reservation holds is told in reserve.lua.

-- include ring

local RESOLVED, DUPLICATE, UNKNOWN = 1, 2, 3
local PENDING, SETTLED, RELEASED = 1, 2, 3
local RESERVED_SCOPES = 6        -- position in a reservation of its first scope
local TOMBSTONE_MS = 120000      -- a settle that waits for its answer longer than this is not repeated

local now = clock(ARGV[1])
local packed = redis.call('GET', KEYS[1])
if not packed then return {UNKNOWN, now} end
local reservation = {cmsgpack.unpack(packed)}
if reservation[1] ~= PENDING then return {DUPLICATE, now} end

local void = ARGV[3] == 'void'
local reserved = by_dimension(reservation[3], reservation[4], reservation[5])
local requests, input_tokens, output_tokens = reservation[3], 0, 0
if not void then requests, input_tokens, output_tokens = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]) end
local excess = by_dimension(requests, input_tokens, output_tokens)  -- negative: what was reserved too much
for dimension = 1, #excess do excess[dimension] = excess[dimension] - reserved[dimension] end
local changes = {}

-- Takes `amount` out of the bucket that was charged, if that is still there. Needs no clock: a closed bucket that the
-- next reserve will drop may as well be corrected before.
local function refund(state, window, ring, bucket, amount)
  if bucket == state[window + NEWEST] then
    state[window + CURRENT] = state[window + CURRENT] - amount
    state[window + SUM] = state[window + SUM] - amount
    return
  end
  local closed = closed_buckets(state, window, ring)
  for i = 1, #closed, 2 do
    if closed[i] == bucket then
      closed[i + 1] = closed[i + 1] - amount
      state[window + SUM] = state[window + SUM] - amount
      changes[#changes + 1] = {ring, state[window + ID], closed}
      return
    end
  end
end

-- The window with this id: nearly always at the place where it was when it was charged.
local function find(state, place, id)
  if state[place + ID] == id then return place end
  for window = FIRST_WINDOW, #state, WINDOW_FIELDS do
    if state[window + ID] == id then return window end
  end
end

local function correct(state, ring, scope_version, first, count)
  for i = 0, count - 1 do
    local id, bucket = reservation[first + 2 * i], reservation[first + 2 * i + 1]
    local window = find(state, FIRST_WINDOW + i * WINDOW_FIELDS, id)
    if window and state[window + SINCE] <= scope_version then
      local amount = excess[state[window + DIMENSION]]
      if amount < 0 then
        refund(state, window, ring, bucket, -amount)
      elseif amount > 0 then
        advance(state, window, ring, now, changes)
        charge(state, window, amount)
      end
    end
  end
end

local states = {}
local place, scope = RESERVED_SCOPES, 1
while place <= #reservation do
  local scope_version, count = reservation[place], reservation[place + 1]
  local key, ring = KEYS[2 + 2 * scope], KEYS[3 + 2 * scope]
  packed = redis.call('GET', key)
  local state = packed and {cmsgpack.unpack(packed)}
  if state and state[LAYOUT] == LAYOUT_VERSION then
    correct(state, ring, scope_version, place + 2, count)
    state[REQUESTS] = state[REQUESTS] + requests
    state[INPUT_TOKENS] = state[INPUT_TOKENS] + input_tokens
    state[OUTPUT_TOKENS] = state[OUTPUT_TOKENS] + output_tokens
    state[LAST_USED_MS] = math.max(state[LAST_USED_MS], now)
    state[OPEN] = math.max(state[OPEN] - 1, 0)         -- published anew after an erasure: starts with none open
    states[#states + 1] = {key, cmsgpack.pack(unpack(state))}
  end
  place, scope = place + 2 + 2 * count, scope + 1
end

-- WRITES. ZREM is first because Redis allows it when memory is full, and lets a script that has written go on: what
-- was used is always counted, and always makes room, while a reserve is refused.
redis.call('ZREM', KEYS[2], ARGV[2])
write_rings(changes)
for i = 1, #states do redis.call('SET', states[i][1], states[i][2]) end
redis.call('SET', KEYS[1], cmsgpack.pack(void and RELEASED or SETTLED, now), 'PX', TOMBSTONE_MS)
redis.call('XADD', KEYS[3], '*', 'e', ARGV[7])
return {RESOLVED, now}
