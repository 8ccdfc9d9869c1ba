-- ring.lua: what the scripts share. Never run by itself; `-- include ring` puts it in.
--
-- THE STATE of a key is one STRING, a flat cmsgpack list: a header, then the fields of each window, one window after
-- the other in the order in which they were published. One read and one write per request, whatever the windows.
--
-- THE RING of a key is one HASH: window id -> flat cmsgpack list `index, amount, index, amount, ...` of the window's
-- closed buckets, oldest first, empty ones left out. It is touched only when a bucket closes, when a refund comes late
-- and when a refusal needs to know until when.
--
-- THE IDEA of a window: time is cut into buckets of WIDTH ms; the bucket of time t has index floor(t / WIDTH). A window
-- is BUCKETS * WIDTH long, and BUCKETS + 1 buckets count: the bucket of now, BUCKETS - 1 full ones before it, and the
-- oldest one whole, although only a part of it still lies within the window:
--
--      index    k-B     k-B+1   ...    k-1      k
--            |-------|-------|-------|-------|----+--|
--                (------------ window -----------] now
--
-- So what is counted always covers the window: never too much is admitted, at whatever moment the window is looked at.
--
-- INVARIANT  SUM = CURRENT + all amounts in the ring;  every index in the ring lies in [NEWEST - BUCKETS, NEWEST - 1].
-- INVARIANT  NEWEST never falls, whatever the clock does: a bucket that was closed is never opened again.
-- All numbers are doubles: integers are exact up to 2^53. So sums are never compared, only differences to a limit.

local LAYOUT_VERSION = 2
local ACTIVE = 1                 -- STATUS of a key; 2 is revoked
local ENFORCE, OBSERVE = 1, 2    -- MODE of a key
local NONE = -1                  -- CONCURRENCY without a cap; OLDEST of an empty ring
local TOKENS = 2                 -- DIMENSION: input and output together

-- Header of a state, by position.
local LAYOUT = 1                 -- LAYOUT_VERSION of the program that wrote it
local VERSION = 2                -- of the key, grows with every change of it
local STATUS = 3
local CONCURRENCY = 4            -- how many requests may be open, or NONE
local OPEN = 5                   -- how many are
local LAST_USED_MS = 6           -- Unix time of the last settle, 0 before the first
local REQUESTS = 7               -- totals of everything that was settled
local INPUT_TOKENS = 8
local OUTPUT_TOKENS = 9
local MODE = 10                  -- whether a limit that is reached refuses
local PREPAID = 11               -- 1: a request has to fit into the balance, too; fixed when the key is made
local BALANCE = 12               -- tokens: what was credited, without everything that was settled; may fall below 0
local HELD = 13                  -- tokens: reserved and not settled; 0 unless PREPAID
local LEDGER = 14                -- number of the last ledger entry that was applied, 0 before the first
local SEEN_MS = 15               -- the latest time at which something was charged: NEWEST * WIDTH is never later
local FIRST_WINDOW = 16          -- position of the first window

-- Fields of a window, by distance from its position.
local ID = 0                     -- "<dimension>/<length in ms>"
local SINCE = 1                  -- VERSION with which it was published: older reservations did not charge it. A window
                                 -- that takes over what another one counted takes over its SINCE
local SHAPED = 2                 -- VERSION with which its buckets were made: older reservations name other buckets
local DIMENSION = 3              -- 1 requests, 2 tokens (input and output), 3 input tokens, 4 output tokens
local WIDTH = 4                  -- of a bucket, ms
local BUCKETS = 5
local AMOUNT = 6                 -- the limit
local NEWEST = 7                 -- index of the bucket that is open
local SUM = 8                    -- of all live buckets
local CURRENT = 9                -- amount in the open bucket
local CHARGED = 10               -- index of the bucket that was charged last
local OLDEST = 11                -- index of the oldest bucket in the ring, or NONE
local WINDOW_FIELDS = 12

-- Unix time in ms: that of Redis, or `given` (a test's).
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Amounts by DIMENSION from the three that a request has. Differences may be negative.
local function by_dimension(requests, input_tokens, output_tokens)
  return {requests, input_tokens + output_tokens, input_tokens, output_tokens}
end

-- The closed buckets of a window: index, amount, index, amount, ... oldest first.
local function closed_buckets(state, window, ring)
  if state[window + OLDEST] == NONE then return {} end
  local packed = redis.call('HGET', ring, state[window + ID])
  return packed and {cmsgpack.unpack(packed)} or {}
end

-- Opens the bucket of now, in `state` only. What has to be written to the ring is added to `changes`.
-- Returns the closed buckets if it had to read them.
local function advance(state, window, ring, now, changes)
  local bucket = math.floor(now / state[window + WIDTH])
  local newest = state[window + NEWEST]
  if bucket <= newest then return nil end              -- the bucket is open; or the clock went back

  local oldest_live = bucket - state[window + BUCKETS]
  local current, oldest = state[window + CURRENT], state[window + OLDEST]
  local live
  if newest < oldest_live then                         -- everything has left the window
    if oldest ~= NONE then changes[#changes + 1] = {ring, state[window + ID]} end
    state[window + SUM] = 0
    state[window + OLDEST] = NONE
  elseif current > 0 or (oldest ~= NONE and oldest < oldest_live) then
    local closed = closed_buckets(state, window, ring)
    live = {}
    for i = 1, #closed, 2 do
      if closed[i] < oldest_live then
        state[window + SUM] = state[window + SUM] - closed[i + 1]
      else
        live[#live + 1] = closed[i]
        live[#live + 1] = closed[i + 1]
      end
    end
    if current > 0 then
      live[#live + 1] = newest
      live[#live + 1] = current
    end
    state[window + OLDEST] = live[1] or NONE
    changes[#changes + 1] = {ring, state[window + ID], live}
  end
  state[window + NEWEST] = bucket
  state[window + CURRENT] = 0
  return live
end

-- Counts `amount` in the open bucket, in `state` only. Call `advance` before.
local function charge(state, window, amount)
  if amount == 0 then return end
  state[window + SUM] = state[window + SUM] + amount
  state[window + CURRENT] = state[window + CURRENT] + amount
  state[window + CHARGED] = state[window + NEWEST]
end

-- Unix time in ms at which a bucket has left the window: BUCKETS + 1 widths after it began.
local function leaves_ms(state, window, bucket)
  return (bucket + state[window + BUCKETS] + 1) * state[window + WIDTH]
end

-- In how many ms the window is empty if nothing more is charged; 0 when it is.
local function reset_ms(state, window, now)
  if state[window + SUM] == 0 then return 0 end
  return leaves_ms(state, window, state[window + CHARGED]) - now
end

local function write_rings(changes)
  for i = 1, #changes do
    local ring, id, closed = changes[i][1], changes[i][2], changes[i][3]
    if closed and #closed > 0 then
      redis.call('HSET', ring, id, cmsgpack.pack(unpack(closed)))
    else
      redis.call('HDEL', ring, id)
    end
  end
end
