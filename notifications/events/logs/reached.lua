-- Remembers how far the durable log has come, in a place that a restore of the database does not put back.
--
-- KEYS[1]  what is remembered, a hash: e = epoch, n = events
-- ARGV[1]  the epoch of the database
-- ARGV[2]  how many events it has numbered

local known = redis.call('HMGET', KEYS[1], 'e', 'n')
if known[1] ~= ARGV[1] or tonumber(known[2]) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'e', ARGV[1], 'n', ARGV[2])
end
