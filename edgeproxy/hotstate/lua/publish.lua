-- publish.lua: make a version of a key hold: its status, its cap, its windows. Older versions change nothing.
--
-- KEYS  1 state (STRING)   2 ring (HASH)
-- ARGV  1 now, Unix ms; empty: the clock of Redis   2 version   3 status (1 active, 2 revoked)
--       4 how many requests may be open, -1 without a cap   5 mode (1 enforce, 2 observe)   6 prepaid (0 or 1)
--       then for each window: id, dimension (1 requests, 2 tokens, 3 input tokens, 4 output tokens),
--       width of a bucket in ms, number of buckets, amount of the limit
-- REPLY status
--   1 PUBLISHED
--   2 KEPT      the state is of this version or a newer one; nothing changes
--   6 LAYOUT    the state was written by an incompatible version of this program; nothing changes
--
-- Totals, open requests, balance and last use stay; prepaid is what it was when the key was first published.
-- A window that stays (same id, same buckets) keeps everything it counts: a changed limit never refills a budget.
-- Neither does a window of another length: it takes over what a window of its dimension counted that goes away now (of
-- several: the one that counted most). So does a window whose buckets have another width in a new version of this
-- program. What was counted in an old bucket is counted in the new one in which the old one ends, or in that of now,
-- so that it leaves later than it would have, never earlier.
-- A window that goes for good takes its ring along; if it comes back, it begins with nothing, and SINCE tells the
-- reservations of before that they never charged it.

-- include ring

local PUBLISHED, KEPT, FOREIGN_LAYOUT = 1, 2, 6
local OPTIONS, WINDOW_OPTIONS = 6, 5

local now = clock(ARGV[1])
local version, status, concurrency = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local mode, prepaid = tonumber(ARGV[5]), tonumber(ARGV[6])
local packed = redis.call('GET', KEYS[1])
local old = packed and {cmsgpack.unpack(packed)}
  or {LAYOUT_VERSION, NONE, status, concurrency, 0, 0, 0, 0, 0, mode, prepaid, 0, 0, 0, 0}
if old[LAYOUT] ~= LAYOUT_VERSION then return {FOREIGN_LAYOUT} end
if old[VERSION] >= version then return {KEPT} end

local new = {LAYOUT_VERSION, version, status, concurrency}
for field = OPEN, SEEN_MS do new[field] = old[field] end
new[MODE] = mode
new[SEEN_MS] = math.max(old[SEEN_MS], now)

local wanted, old_place, changes = {}, {}, {}
for option = OPTIONS + 1, #ARGV, WINDOW_OPTIONS do wanted[ARGV[option]] = true end
for window = FIRST_WINDOW, #old, WINDOW_FIELDS do old_place[old[window + ID]] = window end

-- The window that goes away and counted most of this dimension.
local function gone_window(dimension)
  local found
  for window = FIRST_WINDOW, #old, WINDOW_FIELDS do
    local gone = old[window + DIMENSION] == dimension and not wanted[old[window + ID]]
    if gone and (not found or old[window + SUM] > old[found + SUM]) then found = window end
  end
  return found
end

-- What the window at `source` counted, in the buckets of `fresh`, whose fields it fills in.
local function take_over(source, fresh)
  local width = fresh[WIDTH + 1]
  local newest = math.floor(new[SEEN_MS] / width)
  local function moved(bucket)
    return math.min(math.floor(((bucket + 1) * old[source + WIDTH] - 1) / width), newest)
  end

  local amounts = closed_buckets(old, source, KEYS[2])
  amounts[#amounts + 1], amounts[#amounts + 2] = old[source + NEWEST], old[source + CURRENT]
  local closed, sum, current = {}, 0, 0
  for i = 1, #amounts, 2 do
    local bucket, amount = moved(amounts[i]), amounts[i + 1]
    if amount > 0 and bucket >= newest - fresh[BUCKETS + 1] then
      sum = sum + amount
      if bucket == newest then
        current = current + amount
      elseif closed[#closed - 1] == bucket then
        closed[#closed] = closed[#closed] + amount
      else
        closed[#closed + 1], closed[#closed + 2] = bucket, amount
      end
    end
  end
  changes[#changes + 1] = {KEYS[2], fresh[ID + 1], closed}
  fresh[SINCE + 1], fresh[NEWEST + 1], fresh[SUM + 1], fresh[CURRENT + 1] = old[source + SINCE], newest, sum, current
  fresh[CHARGED + 1], fresh[OLDEST + 1] = moved(old[source + CHARGED]), closed[1] or NONE
end

for option = OPTIONS + 1, #ARGV, WINDOW_OPTIONS do
  local id, dimension, width, buckets, amount = ARGV[option], tonumber(ARGV[option + 1]),
    tonumber(ARGV[option + 2]), tonumber(ARGV[option + 3]), tonumber(ARGV[option + 4])
  local fields = {id, version, version, dimension, width, buckets, amount, 0, 0, 0, 0, NONE}
  local place = old_place[id]
  if place and old[place + WIDTH] == width and old[place + BUCKETS] == buckets then
    for field = 0, WINDOW_FIELDS - 1 do fields[field + 1] = old[place + field] end
    fields[AMOUNT + 1] = amount
  else
    local source = place or gone_window(dimension)
    if source then take_over(source, fields) end
  end
  for field = 1, WINDOW_FIELDS do new[#new + 1] = fields[field] end
end

-- WRITES. HDEL is first because Redis allows it when memory is full, and lets a script that has written go on: a key
-- can be revoked then, too. With no window to take away it deletes a field that is not there.
redis.call('HDEL', KEYS[2], '')
for id in pairs(old_place) do
  if not wanted[id] then redis.call('HDEL', KEYS[2], id) end
end
write_rings(changes)
redis.call('SET', KEYS[1], cmsgpack.pack(unpack(new)))
return {PUBLISHED}
