-- refusal.lua: count one refused request of a known key, per key, minute and HTTP status.
--
-- KEYS  1 refusals of the partition (HASH: `<key id>:<minute, Unix time / 60 s>:<status>` -> count)
-- ARGV  1 now, Unix ms; empty: the clock of Redis   2 key id   3 HTTP status   4 how many rows the HASH may have
-- REPLY status
--   0 FULL      not counted: as many rows as there may be wait for the flush
--   1 COUNTED

-- include ring

local FULL, COUNTED = 0, 1

local minute = math.floor(clock(ARGV[1]) / 60000)
local row = string.format('%s:%.0f:%s', ARGV[2], minute, ARGV[3])
if redis.call('HEXISTS', KEYS[1], row) == 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
  return {FULL}
end

-- WRITES.
redis.call('HINCRBY', KEYS[1], row, 1)
return {COUNTED}
