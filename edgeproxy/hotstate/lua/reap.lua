-- reap.lua: resolve a reservation in the place of a worker that let its lease run out.
--
-- KEYS  1 reservation (STRING)   2 leases (ZSET)   3 usage events (STREAM) of the partition
--       then for each scope of the reserve, in its order: state (STRING), ring (HASH)
-- ARGV  1 now, Unix ms; empty: the clock of Redis   2 request id
--       3 requests   4 input tokens   5 output tokens, as far as they are known
--       6 the encoded usage event, empty for none
-- REPLY status
--   1 RESOLVED
--   2 DUPLICATE   it was resolved before; the lease that was left is taken away
--   3 UNKNOWN     there is no such reservation (any more); the lease that was left is taken away
--   5 ALIVE       its lease is not over (any more); nothing changes
--
-- Between the look at a lease and this, a heartbeat may have renewed it: so the lease is looked at here again.
-- A worker that comes back and settles is answered REAPED, and its event goes to the corrections (settle.lua).

-- include ring
-- include reservation
-- include resolve

local RESOLVED, DUPLICATE, UNKNOWN, ALIVE = 1, 2, 3, 5
local FIRST_KEY = 4              -- place of the first scope in KEYS

local now = clock(ARGV[1])
local reservation = read_reservation(KEYS[1])
if not reservation or reservation[STATE] ~= STATE_PENDING then
  -- WRITES.
  redis.call('ZREM', KEYS[2], ARGV[2])
  return {reservation and DUPLICATE or UNKNOWN}
end
local ends_ms = redis.call('ZSCORE', KEYS[2], ARGV[2])
if ends_ms and tonumber(ends_ms) > now then return {ALIVE} end

local requests, input_tokens, output_tokens = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local states, changes = resolve(reservation, FIRST_KEY, requests, input_tokens, output_tokens, now, now)

-- WRITES. ZREM is first because Redis allows it when memory is full, and lets a script that has written go on.
redis.call('ZREM', KEYS[2], ARGV[2])
write_resolved(states, changes)
write_tombstone(KEYS[1], STATE_REAPED, now)
if ARGV[6] ~= '' then redis.call('XADD', KEYS[3], '*', 'e', ARGV[6]) end
return {RESOLVED}
