-- Begins a new epoch of every topic when the data are not those that this run of Redis has written itself: it was
-- started again with a snapshot or an append-only file, or took over as a replica. What was written last may be missing
-- then, and the same offsets would be given again.
--
-- KEYS[1]  the run of Redis that has written the data
-- ARGV[1]  what keys of positions begin with
-- ARGV[2]  "always", or empty to do it for another run only
--
-- Returns the number of new epochs.

local server = redis.pcall('INFO', 'server')
local run = type(server) == 'string' and server:match('run_id:(%w+)')
if not run then
  if ARGV[2] ~= 'always' then return 0 end -- a service that does not tell: nothing can be known
else
  local written = redis.call('GET', KEYS[1])
  if written ~= run then redis.call('SET', KEYS[1], run) end
  -- Where no name of a run is left, neither is a position.
  if ARGV[2] ~= 'always' and (not written or written == run) then return 0 end
end

-- Of the time, because a run may be put back twice to the same data.
local now = redis.call('TIME')
local prefix = string.format('%x%05x', tonumber(now[1]), tonumber(now[2]))
local begun, cursor = 0, '0'
repeat
  local found = redis.call('SCAN', cursor, 'MATCH', ARGV[1] .. '*', 'COUNT', 1000)
  cursor = found[1]
  for _, key in ipairs(found[2]) do
    begun = begun + 1
    redis.call('HSET', key, 'e', prefix .. string.format('%x', begun))
  end
until cursor == '0'
return begun
