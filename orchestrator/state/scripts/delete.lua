-- Forgets a job that has ended. Takes only away, so a full Redis does it. KEYS 8..: stalled, jobs, then the job's other keys.
-- ARGV: id. Answers {OK} or {ILLEGAL, status}.
local status = redis.call('HGET', JOB, 'status')
if not status then return {'NOTFOUND'} end
if not FINAL[status] then return {'ILLEGAL', status} end
redis.call('ZREM', KEYS[9], ID)
redis.call('HDEL', KEYS[8], ID)
redis.call('DEL', JOB, EVENTS, REPLIES, WLOG, unpack(KEYS, 10))
return {'OK'}
