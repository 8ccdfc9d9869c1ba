-- settle.lua: resolve a reservation, once: put the windows right, count the totals, record the usage event.
--
-- KEYS  1 reservation (STRING)   2 leases (ZSET)   3 usage events (STREAM)   4 corrections (STREAM) of the partition
--       then for each scope of the reserve, in its order: state (STRING), ring (HASH)
-- ARGV  1 now, Unix ms; empty: the clock of Redis   2 request id   3 `post`, `void` or `cancel`
--       4 requests   5 input tokens   6 output tokens, as really used; only read when post
--       7 the encoded usage event, empty for none
-- REPLY status, now
--   1 RESOLVED
--   2 DUPLICATE   it was settled before; nothing changes
--   3 UNKNOWN     there is no such reservation (any more); the event goes to the corrections, nothing else changes
--   4 REAPED      it was resolved in the caller's place, by what was known of it; as with UNKNOWN. So is a post of what
--                 was released: whoever released it did not know that it was used
--
-- post: what was really used replaces what was reserved. void: nothing was used, tokens go back, the request counts.
-- cancel: as if it had never been: all goes back, no total counts it, no event tells of it, and none is a correction.
-- How it is put right is told in resolve.lua.
--
-- An event without a reservation is never charged here: whether it was charged before is known to the database alone.

-- include ring
-- include reservation
-- include resolve

local RESOLVED, DUPLICATE, UNKNOWN, REAPED = 1, 2, 3, 4
local FIRST_KEY = 5              -- place of the first scope in KEYS

local now = clock(ARGV[1])
local cancelled = ARGV[3] == 'cancel'
local told = not cancelled and ARGV[7] ~= ''
local reservation = read_reservation(KEYS[1])
local state = reservation and reservation[STATE]

if not state or state == STATE_REAPED or (state == STATE_RELEASED and ARGV[3] == 'post') then
  -- WRITES. ZREM is first for the reason given below.
  redis.call('ZREM', KEYS[2], ARGV[2])
  if told then redis.call('XADD', KEYS[4], '*', 'e', ARGV[7]) end
  return {state and REAPED or UNKNOWN, now}
end
if state ~= STATE_PENDING then return {DUPLICATE, now} end

local requests, input_tokens, output_tokens = 0, 0, 0
if ARGV[3] == 'post' then
  requests, input_tokens, output_tokens = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
elseif not cancelled then
  requests = reservation[RESERVED_REQUESTS]
end
local used_ms = cancelled and 0 or now
local states, changes = resolve(reservation, FIRST_KEY, requests, input_tokens, output_tokens, now, used_ms)

-- WRITES. ZREM is first because Redis allows it when memory is full, and lets a script that has written go on: what
-- was used is always counted, and always makes room, while a reserve is refused.
redis.call('ZREM', KEYS[2], ARGV[2])
write_resolved(states, changes)
write_tombstone(KEYS[1], ARGV[3] == 'post' and STATE_SETTLED or STATE_RELEASED, now)
if told then redis.call('XADD', KEYS[3], '*', 'e', ARGV[7]) end
return {RESOLVED, now}
