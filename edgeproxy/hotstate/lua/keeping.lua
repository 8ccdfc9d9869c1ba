-- keeping.lua: whether the server that has a partition keeps what it is told. Changes nothing.
--
-- KEYS  1 epoch of the partition (STRING), which is not read: it leads to the server
-- ARGV  none
-- REPLY whether what is written goes to a file (`0` or `1`), what happens when memory is full (a maxmemory-policy);
--       false where the server does not tell

local function told(section, field)
  return string.match(redis.call('INFO', section), '\n' .. field .. ':([%w-]+)') or false
end

return {told('persistence', 'aof_enabled'), told('memory', 'maxmemory_policy')}
