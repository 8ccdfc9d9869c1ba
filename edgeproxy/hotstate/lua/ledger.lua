-- ledger.lua: what credit and adjust share. `-- include ledger` puts it in; it needs ring and
-- their statuses before it.
--
-- The ledger lies in the database, where each entry of a key has a number, without gaps from 1 on. They are applied in
-- that order, so one number says which of them were: an entry that is sent twice, by two processes or after a broken
-- connection, counts once, and none is passed over.

-- The state of a key that an entry may be applied to, and the status, which is the reply otherwise.
local function state_for_entry(key, entry)
  local packed = redis.call('GET', key)
  if not packed then return nil, UNPUBLISHED end
  local state = {cmsgpack.unpack(packed)}
  if state[LAYOUT] ~= LAYOUT_VERSION then return nil, FOREIGN_LAYOUT end
  if entry <= state[LEDGER] then return state, DUPLICATE end
  if entry > state[LEDGER] + 1 then return state, GAP end
  return state, APPLIED
end

-- PERSIST is first because Redis allows it when memory is full, and lets a script that has written go on; it does
-- nothing to a state, which never expires.
local function write_entry(key, state)
  redis.call('PERSIST', key)
  redis.call('SET', key, cmsgpack.pack(unpack(state)))
end
