-- Begins a new epoch of a topic that is not where it was before, because older data were restored.
--
-- KEYS[1]  position of the topic: e = epoch, o = offset
-- ARGV[1]  the epoch in which it was
-- ARGV[2]  the offset that it had reached there
-- ARGV[3]  the new epoch
--
-- Returns {offset, epoch}.

local position = redis.call('HMGET', KEYS[1], 'e', 'o')
local epoch, offset = position[1], tonumber(position[2] or '0')
if epoch == ARGV[1] and offset < tonumber(ARGV[2]) then
  epoch = ARGV[3]
  redis.call('HSET', KEYS[1], 'e', epoch)
end
return {offset, epoch or ''}
