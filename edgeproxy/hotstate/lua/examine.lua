-- examine.lua: tell what a reservation holds, for whoever has to resolve it in its worker's place. Changes nothing.
--
-- KEYS  1 reservation (STRING)
-- ARGV  none
-- REPLY status; when it is PENDING, then: made at, Unix ms; requests, input tokens, output tokens as reserved;
--       input tokens, output tokens as the last heartbeat told; note; then for each scope: version, number of windows,
--       and for each window its id and the index of the bucket that was charged
--   1 PENDING
--   2 RESOLVED
--   3 UNKNOWN   there is no such reservation (any more)

-- include reservation

local PENDING, RESOLVED, UNKNOWN = 1, 2, 3

local reservation = read_reservation(KEYS[1])
if not reservation then return {UNKNOWN} end
if reservation[STATE] ~= STATE_PENDING then return {RESOLVED} end
reservation[STATE] = PENDING
return reservation
