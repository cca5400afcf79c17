-- Appends one event to a topic and announces it, as one step: no other append can come between the two.
--
-- KEYS[1]  position of the topic, a hash: e = epoch, o = offset of the newest event, v and ve = the last accepted
--          version and its epoch
-- KEYS[2]  kept events, a stream whose ids are offset-time: Redis' own time in seconds, as clocks of publishers differ
-- KEYS[3]  totals of the hub, a hash
-- KEYS[4]  what an idempotency key did before, a string; nil when there is no key
-- ARGV[1]  the encoded event
-- ARGV[2]  the epoch to begin if there is none
-- ARGV[3]  how many events to keep; 0 keeps none, and gives no offset
-- ARGV[4]  how long to keep them, in seconds
-- ARGV[5]  how long to remember the position unused, in seconds
-- ARGV[6]  the Redis channel of the topic's group; empty when the caller announces
-- ARGV[7]  the beginning of the announcement: a map of MessagePack that lacks its offset, epoch and event
--
-- Most events have no more. What follows is nil for them, because words and calls are what an append costs Redis:
--
-- ARGV[8]  how long to remember the idempotency key, in seconds
-- ARGV[9]  the Redis channel of the plain group that mirrors the topic, or empty
-- ARGV[10] the packed message for it
-- ARGV[11] the version; 0 when there is none
-- ARGV[12] the epoch of the version
--
-- Returns {offset, epoch, first}: first is false when the event was appended, the encoded event of the first use of
-- the key, or empty when the version was not above the last one.

local call = redis.call

if KEYS[4] then
  local before = call('GET', KEYS[4])
  if before then
    local first = cmsgpack.unpack(before)
    return {first[1], first[2], first[3]}
  end
end

local versioned = ARGV[11] and ARGV[11] ~= '0'
local offset, epoch = 0, ''
if ARGV[3] ~= '0' then
  epoch = call('HGET', KEYS[1], 'e')
  if not epoch then
    epoch = ARGV[2]
    call('HSET', KEYS[1], 'e', epoch)
  end
  if versioned then
    local last = call('HMGET', KEYS[1], 'v', 've', 'o')
    -- Compared as text, because Lua's numbers are exact to 53 bits only.
    if last[1] and last[2] == ARGV[12]
      and (#last[1] > #ARGV[11] or (#last[1] == #ARGV[11] and last[1] >= ARGV[11])) then
      return {tonumber(last[3]), epoch, ''}
    end
  end
  offset = call('HINCRBY', KEYS[1], 'o', '1')
  call('EXPIRE', KEYS[1], ARGV[5])
  if offset == 1 then
    -- The position was evicted while the events were not: they belong to a run that has ended.
    call('DEL', KEYS[2])
  end
  call('XADD', KEYS[2], 'MAXLEN', ARGV[3], offset .. '-' .. call('TIME')[1], 'v', ARGV[1])
  call('EXPIRE', KEYS[2], ARGV[4])
  if versioned then
    call('HSET', KEYS[1], 'v', ARGV[11], 've', ARGV[12])
  end
end

call('HINCRBY', KEYS[3], 'published', '1')
if ARGV[6] ~= '' then
  call('PUBLISH', ARGV[6], ARGV[7] .. cmsgpack.pack('offset', offset, 'epoch', epoch, 'event', ARGV[1]))
end
if ARGV[9] and ARGV[9] ~= '' then
  call('PUBLISH', ARGV[9], ARGV[10])
end
if KEYS[4] then
  call('SET', KEYS[4], cmsgpack.pack({offset, epoch, ARGV[1]}), 'EX', ARGV[8])
end
return {offset, epoch, false}
