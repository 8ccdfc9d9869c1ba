-- inspect.lua: tell what is counted of a key now. Changes nothing.
--
-- KEYS  1 state (STRING)   2 ring (HASH)
-- ARGV  1 now, Unix ms; empty: the clock of Redis
-- REPLY status (only that, when it is not FOUND), version, status of the key (1 active, 2 revoked),
--       totals: requests, input tokens, output tokens; last use, Unix ms or 0; open requests;
--       mode (1 enforce, 2 observe), prepaid (0 or 1), balance, held, number of the last ledger entry;
--       then for each window: id, amount of the limit, used, reset ms
--   1 FOUND
--   3 UNPUBLISHED
--   6 LAYOUT    the state was written by an incompatible version of this program
--
-- The windows are advanced to now as a reserve would do it, and the result is not written.

-- include ring

local FOUND, UNPUBLISHED, FOREIGN_LAYOUT = 1, 3, 6

local now = clock(ARGV[1])
local packed = redis.call('GET', KEYS[1])
if not packed then return {UNPUBLISHED} end
local state = {cmsgpack.unpack(packed)}
if state[LAYOUT] ~= LAYOUT_VERSION then return {FOREIGN_LAYOUT} end

local reply = {
  FOUND, state[VERSION], state[STATUS],
  state[REQUESTS], state[INPUT_TOKENS], state[OUTPUT_TOKENS], state[LAST_USED_MS], state[OPEN],
  state[MODE], state[PREPAID], state[BALANCE], state[HELD], state[LEDGER],
}
for window = FIRST_WINDOW, #state, WINDOW_FIELDS do
  advance(state, window, KEYS[2], now, {})
  reply[#reply + 1] = state[window + ID]
  reply[#reply + 1] = state[window + AMOUNT]
  reply[#reply + 1] = state[window + SUM]
  reply[#reply + 1] = reset_ms(state, window, now)
end
return reply
