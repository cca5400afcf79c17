-- Takes from a bucket of tokens (GCRA), see limits.gcra().
--
-- KEYS[1]  when the bucket will be full again, in microseconds of this Redis' clock; no key: it is full
-- ARGV[1]  tokens per second by which it is refilled
-- ARGV[2]  tokens that it holds
-- ARGV[3]  tokens to take
--
-- Returns the microseconds to wait, 0 when the tokens were taken.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local step = 1000000 / ARGV[1]
local start = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0))
local wait = start - now - (ARGV[2] - 1) * step
if wait > step / 100 then
  return math.ceil(wait)
end
local full = start + ARGV[3] * step
-- Lua itself would write fourteen digits, and a time has sixteen.
redis.call('SET', KEYS[1], string.format('%.17g', full), 'PX', math.ceil((full - now) / 1000))
return 0
