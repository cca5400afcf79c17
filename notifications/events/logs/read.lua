-- Reads kept events of a topic together with its position, so that the two fit.
--
-- KEYS[1]  position of the topic: e = epoch, o = offset
-- KEYS[2]  kept events, a stream whose ids are offset-time
-- ARGV[1]  the epoch to begin if there is none
-- ARGV[2]  how long to remember the position unused, in seconds
-- ARGV[3]  'forward' or 'reverse'
-- ARGV[4]  first offset to read, in that direction; '-' or '+' for all
-- ARGV[5]  how many events at most; -1 is all, 0 none
-- ARGV[6]  how long events are kept, in seconds
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

local reverse = ARGV[3] == 'reverse'
local function read()
  local arguments
  if reverse then
    arguments = {'XREVRANGE', KEYS[2], ARGV[4], '-'}
  else
    arguments = {'XRANGE', KEYS[2], ARGV[4], '+'}
  end
  if limit > 0 then
    arguments[5] = 'COUNT'
    arguments[6] = limit
  end
  return redis.call(unpack(arguments))
end

local due = redis.call('TIME')[1] - ARGV[6]
local function is_too_old(entry)
  return tonumber(string.match(entry[1], '%d+$')) < due
end

local events = read()
local oldest = events[reverse and #events or 1]
if oldest and is_too_old(oldest) then
  -- The stream expires as a whole with its newest event; older ones are too old before that. Times rise with the
  -- offsets, so that the first to be kept is found by halving.
  local low, high = tonumber(string.match(oldest[1], '^%d+')), offset + 1
  while high - low > 1 do
    local middle = math.floor((low + high) / 2)
    local entry = redis.call('XRANGE', KEYS[2], middle, '+', 'COUNT', 1)[1]
    if entry and is_too_old(entry) then low = middle else high = middle end
  end
  redis.call('XTRIM', KEYS[2], 'MINID', high)
  events = read()
end
return {offset, epoch, events}
