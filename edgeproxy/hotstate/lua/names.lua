-- names.lua: what the server that has a partition holds of any key: names, some at a time. Changes nothing.
--
-- KEYS  1 epoch of the partition (STRING), which is not read: it leads to the server
-- ARGV  1 cursor, 0 begins   2 pattern of the names   3 about how many to look at
-- REPLY the next cursor, 0 at the end; then the names
--
-- As with SCAN, a name that is there from the beginning to the end is told, maybe twice.

local found = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
return {found[1], unpack(found[2])}
