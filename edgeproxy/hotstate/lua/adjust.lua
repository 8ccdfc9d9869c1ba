-- adjust.lua: book the difference between what was settled and what was really used, once, in the order of the ledger.
--
-- KEYS  1 state (STRING)   2 ring (HASH)
-- ARGV  1 now, Unix ms; empty: the clock of Redis   2 number of the entry in the ledger of the key, from 1
--       3 requests   4 input tokens   5 output tokens, as differences: less than 0 when too much was settled
-- REPLY status, number of the last entry that was applied (0 when it is not known)
--   1 APPLIED
--   2 DUPLICATE    this entry or a later one was applied before; nothing changes
--   3 UNPUBLISHED  there is no state
--   4 GAP          an earlier entry has to come first; nothing changes
--   6 LAYOUT       the state was written by an incompatible version of this program
--
-- Totals and balance follow the difference. A window is charged what was settled too little, now; what was settled too
-- much stays counted in it: in which bucket it lies is not known, and any other would let it through a second time.

-- include ring

local APPLIED, DUPLICATE, UNPUBLISHED, GAP, FOREIGN_LAYOUT = 1, 2, 3, 4, 6

-- include ledger

local now, entry = clock(ARGV[1]), tonumber(ARGV[2])
local requests, input_tokens, output_tokens = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local state, status = state_for_entry(KEYS[1], entry)
if status ~= APPLIED then return {status, state and state[LEDGER] or 0} end

local missing, changes = by_dimension(requests, input_tokens, output_tokens), {}
for window = FIRST_WINDOW, #state, WINDOW_FIELDS do
  local amount = missing[state[window + DIMENSION]]
  if amount > 0 then
    advance(state, window, KEYS[2], now, changes)
    charge(state, window, amount)
  end
end
state[SEEN_MS] = math.max(state[SEEN_MS], now)
state[REQUESTS] = state[REQUESTS] + requests
state[INPUT_TOKENS] = state[INPUT_TOKENS] + input_tokens
state[OUTPUT_TOKENS] = state[OUTPUT_TOKENS] + output_tokens
state[BALANCE] = state[BALANCE] - (input_tokens + output_tokens)
state[LEDGER] = entry

-- WRITES.
write_entry(KEYS[1], state)
write_rings(changes)
return {APPLIED, entry}
