-- erase.lua: forget a key: its state, its ring, its counts of refusals.
--
-- KEYS  1 state (STRING)   2 ring (HASH)   3 refusals of the partition (HASH)
-- ARGV  1 key id
-- REPLY status
--   0 ABSENT    there was nothing
--   1 ERASED
--
-- Deleting is dangerous while requests are open: what they use would be counted nowhere but in their events. Whoever
-- calls this revokes the key first and waits for what is open. A settle that comes later still resolves.
-- The refusals are bounded (refusal.lua), so they may be looked through.

local ABSENT, ERASED = 0, 1

local prefix = ARGV[1] .. ':'
local erased = redis.call('DEL', KEYS[1], KEYS[2])
for _, row in ipairs(redis.call('HKEYS', KEYS[3])) do
  if row:sub(1, #prefix) == prefix then erased = erased + redis.call('HDEL', KEYS[3], row) end
end
return {erased > 0 and ERASED or ABSENT}
