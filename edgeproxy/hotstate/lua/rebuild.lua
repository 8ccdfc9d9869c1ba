-- rebuild.lua: write the counters of a key from what is known durably, in the place of whatever is there.
--
-- KEYS  1 state (STRING)   2 ring (HASH)
-- ARGV  1 the packed state that the caller saw; empty: there was none
--       2 version   3 status (1 active, 2 revoked)   4 how many requests may be open, -1 without a cap
--       5 mode (1 enforce, 2 observe)   6 prepaid (0 or 1)   7 open requests   8 tokens held   9 last use, Unix ms or 0
--       10 requests, 11 input tokens, 12 output tokens in total   13 balance in tokens   14 number of the last ledger
--       entry that is in all this
--       then for each window: id, dimension, width of a bucket in ms, number of buckets, amount of the limit, how many
--       buckets follow, then for each of them its index and its amount, oldest first; the last is that of now
-- REPLY status
--   1 REBUILT
--   2 CHANGED   the state is not the one that the caller saw: something was counted meanwhile; nothing changes
--
-- A state of another layout is replaced, too. What is open has to be counted in the windows, in the buckets that its
-- reservations name (examine.lua), because settling will take it out of them. Only where the buckets were made anew
-- (SHAPED) it will not, and what was reserved too much stays counted until it leaves.

-- include ring

local REBUILT, CHANGED = 1, 2
local OPTIONS, WINDOW_OPTIONS = 14, 6

local packed = redis.call('GET', KEYS[1])
if (packed or '') ~= ARGV[1] then return {CHANGED} end
local old = packed and {cmsgpack.unpack(packed)} or {}
if old[LAYOUT] ~= LAYOUT_VERSION then old = {} end

local state, rings = {LAYOUT_VERSION}, {}
local options = {}
for option = 2, OPTIONS do options[option] = tonumber(ARGV[option]) end
state[VERSION], state[STATUS], state[CONCURRENCY] = options[2], options[3], options[4]
state[OPEN], state[LAST_USED_MS] = options[7], options[9]
state[REQUESTS], state[INPUT_TOKENS], state[OUTPUT_TOKENS] = options[10], options[11], options[12]
state[MODE], state[PREPAID], state[BALANCE] = options[5], options[6], options[13]
state[HELD], state[LEDGER], state[SEEN_MS] = options[8], options[14], options[9]

-- With which version the buckets of a window were made: they are still those that its reservations know, or new ones.
local function shaped(id, width, buckets)
  for window = FIRST_WINDOW, #old, WINDOW_FIELDS do
    if old[window + ID] == id and old[window + WIDTH] == width and old[window + BUCKETS] == buckets then
      return old[window + SHAPED]
    end
  end
  return state[VERSION]
end

local option = OPTIONS + 1
while option <= #ARGV do
  local id, dimension, width, buckets, amount = ARGV[option], tonumber(ARGV[option + 1]),
    tonumber(ARGV[option + 2]), tonumber(ARGV[option + 3]), tonumber(ARGV[option + 4])
  local count = tonumber(ARGV[option + 5])
  local closed, sum, newest, current = {}, 0, 0, 0
  for i = option + WINDOW_OPTIONS, option + WINDOW_OPTIONS + 2 * count - 2, 2 do
    if newest > 0 then closed[#closed + 1], closed[#closed + 2] = newest, current end
    newest, current = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
    sum = sum + current
  end
  rings[#rings + 1] = {KEYS[2], id, closed}
  state[SEEN_MS] = math.max(state[SEEN_MS], newest * width)
  local fields = {id, 0, shaped(id, width, buckets), dimension, width, buckets, amount, newest, sum, current, newest}
  fields[OLDEST + 1] = closed[1] or NONE
  for field = 1, WINDOW_FIELDS do state[#state + 1] = fields[field] end
  option = option + WINDOW_OPTIONS + 2 * count
end

-- WRITES. DEL is first because Redis allows it when memory is full, and lets a script that has written go on.
redis.call('DEL', KEYS[2])
write_rings(rings)
redis.call('SET', KEYS[1], cmsgpack.pack(unpack(state)))
return {REBUILT}
