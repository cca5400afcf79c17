-- Appends one event to a topic and announces it, as one step: no other append can come between the two.
--
-- KEYS[1]  position of the topic, a hash: e = epoch, o = offset of the newest event, v and ve = the last accepted
--          version and its epoch
-- KEYS[2]  kept events, a stream whose ids are offset-time: Redis' own time in seconds, as clocks of publishers differ
-- KEYS[3]  what an idempotency key did before, a string
-- KEYS[4]  totals of the hub, a hash
-- ARGV[1]  the encoded event
-- ARGV[2]  how many events to keep; 0 keeps none, and gives no offset
-- ARGV[3]  how long to keep them, in seconds
-- ARGV[4]  how long to remember the position unused, in seconds
-- ARGV[5]  how long to remember the idempotency key, in seconds; 0 when there is none
-- ARGV[6]  the epoch to begin if there is none
-- ARGV[7]  the Redis channel of the topic's group; empty when the caller announces
-- ARGV[8]  the topic
-- ARGV[9]  the client that must not get the event back, or empty
-- ARGV[10] version of the message format
-- ARGV[11] the Redis channel of the plain group that mirrors the topic, or empty
-- ARGV[12] the packed message for it
-- ARGV[13] the version; 0 when there is none
-- ARGV[14] the epoch of the version
--
-- Returns {offset, epoch, first}: first is false when the event was appended, the encoded event of the first use of
-- the key, or empty when the version was not above the last one.

local remember = tonumber(ARGV[5])
if remember > 0 then
  local before = redis.call('GET', KEYS[3])
  if before then
    local first = cmsgpack.unpack(before)
    return {first[1], first[2], first[3]}
  end
end

local size = tonumber(ARGV[2])
local offset, epoch = 0, ''
if size > 0 then
  epoch = redis.call('HGET', KEYS[1], 'e')
  if not epoch then
    epoch = ARGV[6]
    redis.call('HSET', KEYS[1], 'e', epoch)
  end
  if ARGV[13] ~= '0' then
    local last = redis.call('HMGET', KEYS[1], 'v', 've', 'o')
    -- Compared as text, because Lua's numbers are exact to 53 bits only.
    if last[1] and last[2] == ARGV[14]
      and (#last[1] > #ARGV[13] or (#last[1] == #ARGV[13] and last[1] >= ARGV[13])) then
      return {tonumber(last[3]), epoch, ''}
    end
  end
  offset = redis.call('HINCRBY', KEYS[1], 'o', 1)
  redis.call('EXPIRE', KEYS[1], ARGV[4])
  if offset == 1 then
    -- The position was evicted while the events were not: they belong to a run that has ended.
    redis.call('DEL', KEYS[2])
  end
  redis.call('XADD', KEYS[2], 'MAXLEN', size, offset .. '-' .. redis.call('TIME')[1], 'v', ARGV[1])
  redis.call('EXPIRE', KEYS[2], ARGV[3])
  if ARGV[13] ~= '0' then
    redis.call('HSET', KEYS[1], 'v', ARGV[13], 've', ARGV[14])
  end
end

redis.call('HINCRBY', KEYS[4], 'published', 1)
if ARGV[7] ~= '' then
  local message = {
    type = 'hub.event', v = tonumber(ARGV[10]), topic = ARGV[8], offset = offset, epoch = epoch, event = ARGV[1],
  }
  if ARGV[9] ~= '' then message.exclude = ARGV[9] end
  redis.call('PUBLISH', ARGV[7], cmsgpack.pack(message))
end
if ARGV[11] ~= '' then
  redis.call('PUBLISH', ARGV[11], ARGV[12])
end
if remember > 0 then
  redis.call('SET', KEYS[3], cmsgpack.pack({offset, epoch, ARGV[1]}), 'EX', remember)
end
return {offset, epoch, false}
