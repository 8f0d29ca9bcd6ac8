-- Moves a webhook's cursor on a job forward, never back: a dispatcher that lost its lock may come late.
-- KEYS 1, 2: the owner's webhooks, the cursors. ARGV: webhook id, job id, seq. Answers {OK} or {GONE}.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  redis.call('DEL', KEYS[2]) -- removed while it was served: leave nothing behind
  return {'GONE'}
end
if tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or 0) < tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
end
return {'OK'}
