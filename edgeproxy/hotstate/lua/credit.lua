-- credit.lua: add a ledger entry to the balance of a key, once, and in the order of the ledger.
--
-- KEYS  1 state (STRING)
-- ARGV  1 number of the entry in the ledger of the key, from 1   2 tokens; less than 0 takes away
-- REPLY status, number of the last entry that was applied (0 when it is not known)
--   1 APPLIED
--   2 DUPLICATE    this entry or a later one was applied before; nothing changes
--   3 UNPUBLISHED  there is no state
--   4 GAP          an earlier entry has to come first; nothing changes
--   6 LAYOUT       the state was written by an incompatible version of this program

-- include ring

local APPLIED, DUPLICATE, UNPUBLISHED, GAP, FOREIGN_LAYOUT = 1, 2, 3, 4, 6

-- include ledger

local entry = tonumber(ARGV[1])
local state, status = state_for_entry(KEYS[1], entry)
if status ~= APPLIED then return {status, state and state[LEDGER] or 0} end
state[BALANCE] = state[BALANCE] + tonumber(ARGV[2])
state[LEDGER] = entry

-- WRITES.
write_entry(KEYS[1], state)
return {APPLIED, entry}
