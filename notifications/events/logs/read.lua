-- Reads kept events of a topic together with its position, so that the two fit.
--
-- KEYS[1]  position of the topic: e = epoch, o = offset
-- KEYS[2]  kept events
-- ARGV[1]  the epoch to begin if there is none
-- ARGV[2]  how long to remember the position unused, in seconds
-- ARGV[3]  'forward' or 'reverse'
-- ARGV[4]  first stream id to read, in that direction
-- ARGV[5]  how many events at most; -1 is all, 0 none
--
-- Returns {offset, epoch, {{id, {'v', event}}, …}}.

local epoch = redis.call('HGET', KEYS[1], 'e')
if not epoch then
  epoch = ARGV[1]
  redis.call('HSET', KEYS[1], 'e', epoch, 'o', 0)
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  redis.call('DEL', KEYS[2])
end
local offset = tonumber(redis.call('HGET', KEYS[1], 'o') or '0')
local limit = tonumber(ARGV[5])
if limit == 0 then return {offset, epoch, {}} end
local arguments
if ARGV[3] == 'reverse' then
  arguments = {'XREVRANGE', KEYS[2], ARGV[4], '-'}
else
  arguments = {'XRANGE', KEYS[2], ARGV[4], '+'}
end
if limit > 0 then
  arguments[5] = 'COUNT'
  arguments[6] = limit
end
return {offset, epoch, redis.call(unpack(arguments))}
