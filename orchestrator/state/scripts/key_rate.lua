-- Counts one write of an API key, unless its minute or its owner's is full. KEYS: the key's counter, its owner's if it
-- counts there too.
-- ARGV: most writes a minute of each. Answers {OK} or {LIMITED, ms until that minute ends}, and then counts in neither.
-- A call repeated after a lost reply counts twice.
for i, counter in ipairs(KEYS) do
  if tonumber(redis.call('GET', counter) or 0) >= tonumber(ARGV[i]) then
    return {'LIMITED', redis.call('PTTL', counter)}
  end
end
for _, counter in ipairs(KEYS) do
  local writes, left_ms = tonumber(redis.call('GET', counter) or 0), redis.call('PTTL', counter)
  redis.call('DEL', counter) -- so that a full Redis counts too: see the prelude
  redis.call('SET', counter, writes + 1, 'PX', left_ms > 0 and left_ms or 60000)
end
return {'OK'}
