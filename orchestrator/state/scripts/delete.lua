-- Forgets a job that has ended. Takes only away, so a full Redis does it. KEYS 8..: stalled, jobs, kept, then the job's other keys.
-- ARGV: id. Answers {OK} or {ILLEGAL, status}.
local status, bytes = redis.call('HGET', JOB, 'status'), redis.call('HGET', JOB, 'kept_bytes')
if not status then return {'NOTFOUND'} end
if not FINAL[status] then return {'ILLEGAL', status} end
redis.call('ZREM', KEYS[9], ID)
redis.call('HDEL', KEYS[8], ID)
redis.call('DEL', JOB, EVENTS, REPLIES, WLOG, unpack(KEYS, 11))
if redis.call('ZCARD', KEYS[9]) == 0 then -- a version that counts nothing may have deleted some
  redis.call('DEL', KEYS[10])
else
  redis.call('HINCRBY', KEYS[10], 'bytes', -tonumber(bytes or 0)) -- of a job of an earlier version nothing was counted
end
return {'OK'}
