-- Counts one write of an API key, unless its minute is full. KEYS 1: the counter. ARGV: most writes a minute.
-- Answers {OK} or {LIMITED, ms until the minute ends}. A call repeated after a lost reply counts twice.
if tonumber(redis.call('GET', KEYS[1]) or 0) >= tonumber(ARGV[1]) then
  return {'LIMITED', redis.call('PTTL', KEYS[1])}
end
if redis.call('INCR', KEYS[1]) == 1 then redis.call('PEXPIRE', KEYS[1], 60000) end
return {'OK'}
