-- epoch.lua: on which server a partition lies now, and on which ones its counters are known to be complete.
--
-- KEYS  1 epoch of the partition (STRING)
-- ARGV  none
-- REPLY run id of the server that runs this, the epoch as it was written (false: none)
--
-- A server makes up its run id when it starts. Asked from inside a script, it is always the server that has the key,
-- in a cluster as well, and both answers are of one moment.

local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
return {run_id, redis.call('GET', KEYS[1])}
