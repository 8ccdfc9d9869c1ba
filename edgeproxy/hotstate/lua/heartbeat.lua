-- heartbeat.lua: say that requests still run, and what they used so far.
--
-- KEYS  1 leases of the partition (ZSET)   then reservations (STRING)
-- ARGV  1 now, Unix ms; empty: the clock of Redis   2 lease, ms, from now on
--       then for each reservation: request id, input tokens, output tokens so far
-- REPLY now, then for each reservation a status
--   1 RENEWED
--   3 UNKNOWN   there is no such reservation, or it is resolved; nothing changes
--
-- What is told is for whoever has to resolve the reservation in the caller's place; it charges nothing. It never falls.

-- include ring
-- include reservation

local RENEWED, UNKNOWN = 1, 3

local now = clock(ARGV[1])
local ends_ms = now + tonumber(ARGV[2])
local reply, beats = {now}, {}
for i = 2, #KEYS do
  local reservation = read_reservation(KEYS[i])
  local told = 3 * i - 3         -- place in ARGV of what is told of it
  reply[i] = UNKNOWN
  if reservation and reservation[STATE] == STATE_PENDING then
    reply[i] = RENEWED
    reservation[BEAT_INPUT] = math.max(reservation[BEAT_INPUT], tonumber(ARGV[told + 1]))
    reservation[BEAT_OUTPUT] = math.max(reservation[BEAT_OUTPUT], tonumber(ARGV[told + 2]))
    beats[#beats + 1] = {KEYS[i], cmsgpack.pack(unpack(reservation)), ARGV[told]}
  end
end

-- WRITES. ZREM is first because Redis allows it when memory is full, and lets a script that has written go on; it takes
-- a lease away that is not there.
redis.call('ZREM', KEYS[1], '')
for i = 1, #beats do
  redis.call('SET', beats[i][1], beats[i][2])
  redis.call('ZADD', KEYS[1], ends_ms, beats[i][3])
end
return reply
