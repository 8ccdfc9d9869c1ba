-- publish.lua: make a version of a key hold: its status, its cap, its windows. Older versions change nothing.
--
-- KEYS  1 state (STRING)   2 ring (HASH)
-- ARGV  1 version   2 status (1 active, 2 revoked)   3 how many requests may be open, -1 without a cap
--       then for each window: id, dimension (1 requests, 2 tokens, 3 input tokens, 4 output tokens),
--       width of a bucket in ms, number of buckets, amount of the limit
-- REPLY status
--   1 PUBLISHED
--   2 KEPT      the state is of this version or a newer one; nothing changes
--   6 LAYOUT    the state was written by an incompatible version of this program; nothing changes
--
-- Totals, open requests and last use stay. A window that stays (same id) keeps everything it counts and its geometry,
-- so that a changed limit, or another number of buckets in a new version of this program, never refills a budget.
-- A window that goes takes its ring along; if it comes back, it begins with nothing, and SINCE tells the reservations
-- of before that they never charged it.

-- include ring

local PUBLISHED, KEPT, FOREIGN_LAYOUT = 1, 2, 6
local OPTIONS, WINDOW_OPTIONS = 3, 5

local version, status, concurrency = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local packed = redis.call('GET', KEYS[1])
local old = packed and {cmsgpack.unpack(packed)} or {LAYOUT_VERSION, NONE, status, concurrency, 0, 0, 0, 0, 0}
if old[LAYOUT] ~= LAYOUT_VERSION then return {FOREIGN_LAYOUT} end
if old[VERSION] >= version then return {KEPT} end

local old_place = {}
for window = FIRST_WINDOW, #old, WINDOW_FIELDS do old_place[old[window + ID]] = window end

local new = {LAYOUT_VERSION, version, status, concurrency}
for field = OPEN, OUTPUT_TOKENS do new[field] = old[field] end
for option = OPTIONS + 1, #ARGV, WINDOW_OPTIONS do
  local id, window = ARGV[option], #new + 1
  local dimension, width, buckets, amount = tonumber(ARGV[option + 1]), tonumber(ARGV[option + 2]),
    tonumber(ARGV[option + 3]), tonumber(ARGV[option + 4])
  local fresh = {id, version, dimension, width, buckets, amount, 0, 0, 0, 0, NONE}
  for field = 0, WINDOW_FIELDS - 1 do
    new[window + field] = old_place[id] and old[old_place[id] + field] or fresh[field + 1]
  end
  new[window + AMOUNT] = amount
  old_place[id] = nil
end

-- WRITES. HDEL is first because Redis allows it when memory is full, and lets a script that has written go on: a key
-- can be revoked then, too. With no window to take away it deletes a field that is not there.
redis.call('HDEL', KEYS[2], '')
for id in pairs(old_place) do redis.call('HDEL', KEYS[2], id) end
redis.call('SET', KEYS[1], cmsgpack.pack(unpack(new)))
return {PUBLISHED}
