-- resolve.lua: how settle and reap put right what a reservation charged. `-- include resolve` puts it in; it needs ring
-- and reservation before it.
--
-- What was reserved too much goes back to the bucket that was charged, and nowhere else: once that bucket has left the
-- window, there is nothing to give back, and a younger bucket would let the same amount through a second time. So a
-- window whose buckets were made after the reservation (SHAPED) gives nothing back either.
-- What was used beyond the reservation is charged to the bucket of now, even over the limit: it is used. That holds for
-- a window that took over what an older one counted, too (SINCE), whatever its id.
-- A scope that is gone, or a window that began with nothing after the reservation was made, is left alone.

-- Takes `amount` out of the bucket that was charged, if that is still there. Needs no clock: a closed bucket that the
-- next reserve will drop may as well be corrected before.
local function refund(state, window, ring, bucket, amount, changes)
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

-- The bucket of the window `id` that a scope of the reservation charged: nearly always at the place where the window
-- is now. `first` is the position of the scope's first window, `count` their number.
local function charged_bucket(reservation, first, count, place, id)
  if place < count and reservation[first + 2 * place] == id then return reservation[first + 2 * place + 1] end
  for i = first, first + 2 * count - 2, 2 do
    if reservation[i] == id then return reservation[i + 1] end
  end
end

-- Puts the windows of one scope right, in `state` only. `scope` is the position of the scope in the reservation,
-- `excess` what was used beyond the reservation by DIMENSION, negative: what was reserved too much.
local function correct(state, ring, reservation, scope, excess, now, changes)
  local version, count = reservation[scope], reservation[scope + 1]
  for window = FIRST_WINDOW, #state, WINDOW_FIELDS do
    local amount = excess[state[window + DIMENSION]]
    if amount > 0 and state[window + SINCE] <= version then
      advance(state, window, ring, now, changes)
      charge(state, window, amount)
    elseif amount < 0 and state[window + SHAPED] <= version then
      local place = (window - FIRST_WINDOW) / WINDOW_FIELDS
      local bucket = charged_bucket(reservation, scope + 2, count, place, state[window + ID])
      if bucket then refund(state, window, ring, bucket, -amount, changes) end
    end
  end
end

-- Replaces what a reservation charged by what was used, in every scope. `first_key` is the place in KEYS of the state
-- of the first scope, `used_ms` when the key was used, 0 if it was not. Returns what has to be written: the states
-- (key, packed) and the changes of rings.
local function resolve(reservation, first_key, requests, input_tokens, output_tokens, now, used_ms)
  local held = reservation[RESERVED_INPUT] + reservation[RESERVED_OUTPUT]
  local excess = by_dimension(
    requests - reservation[RESERVED_REQUESTS],
    input_tokens - reservation[RESERVED_INPUT],
    output_tokens - reservation[RESERVED_OUTPUT]
  )
  local states, changes = {}, {}
  local scope, key = FIRST_SCOPE, first_key
  while scope <= #reservation do
    local packed = redis.call('GET', KEYS[key])
    local state = packed and {cmsgpack.unpack(packed)}
    if state and state[LAYOUT] == LAYOUT_VERSION then
      correct(state, KEYS[key + 1], reservation, scope, excess, now, changes)
      state[REQUESTS] = state[REQUESTS] + requests
      state[INPUT_TOKENS] = state[INPUT_TOKENS] + input_tokens
      state[OUTPUT_TOKENS] = state[OUTPUT_TOKENS] + output_tokens
      state[LAST_USED_MS] = math.max(state[LAST_USED_MS], used_ms)
      state[SEEN_MS] = math.max(state[SEEN_MS], now)
      -- A key that was published anew after an erasure starts with none open and nothing held: not below that.
      state[OPEN] = math.max(state[OPEN] - 1, 0)
      state[BALANCE] = state[BALANCE] - (input_tokens + output_tokens)
      if state[PREPAID] == 1 then state[HELD] = math.max(state[HELD] - held, 0) end
      states[#states + 1] = {KEYS[key], cmsgpack.pack(unpack(state))}
    end
    scope, key = scope + 2 + 2 * reservation[scope + 1], key + 2
  end
  return states, changes
end

local function write_resolved(states, changes)
  write_rings(changes)
  for i = 1, #states do redis.call('SET', states[i][1], states[i][2]) end
end
