-- record.lua: write what a worker has to know of a key, unless a newer version is there.
--
-- KEYS  1 key record (STRING, JSON with a number `version`)
-- ARGV  1 version   2 the record
-- REPLY status
--   1 PUBLISHED
--   2 KEPT      the record is of this version or a newer one; nothing changes
--
-- Two processes may publish the same key at once, in any order: the newest version stays.

local PUBLISHED, KEPT = 1, 2

local there = redis.call('GET', KEYS[1])
if there and cjson.decode(there).version >= tonumber(ARGV[1]) then return {KEPT} end

-- WRITES. DEL is first because Redis allows it when memory is full, and lets a script that has written go on.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2])
return {PUBLISHED}
