-- reservation.lua: what the scripts share about reservations. `-- include reservation` puts it in.
--
-- A RESERVATION is one STRING, a flat cmsgpack list: a header, then for each scope VERSION of the key as charged,
-- number of windows, and for each window its id and the index of the bucket that was charged.
--
-- A resolved reservation is only `state, now` and lives for TOMBSTONE_MS, so that a repetition is known as one.

local STATE_PENDING, STATE_SETTLED, STATE_RELEASED, STATE_REAPED = 1, 2, 3, 4
local TOMBSTONE_MS = 120000      -- a settle that waits for its answer longer than this finds nothing: UNKNOWN

-- Header of a reservation, by position.
local STATE = 1
local AT_MS = 2                  -- when it was made
local RESERVED_REQUESTS = 3
local RESERVED_INPUT = 4
local RESERVED_OUTPUT = 5
local BEAT_INPUT = 6             -- tokens as the last heartbeat told
local BEAT_OUTPUT = 7
local NOTE = 8                   -- bytes of the caller's, for whoever has to resolve it in the caller's place
local FIRST_SCOPE = 9

local function read_reservation(key)
  local packed = redis.call('GET', key)
  return packed and {cmsgpack.unpack(packed)}
end

local function write_tombstone(key, state, now)
  redis.call('SET', key, cmsgpack.pack(state, now), 'PX', TOMBSTONE_MS)
end
