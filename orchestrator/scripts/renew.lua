-- Extends the lease and answers {OK, status, steering version}. KEYS 6: steering. ARGV: id, fence, nonce, ttl ms.
local refused = refusal(ARGV[2], ARGV[3])
if refused then return {refused} end
redis.call('HSET', JOB, 'ttl_ms', ARGV[4])
extend(now_us(), ARGV[4])
return {'OK', redis.call('HGET', JOB, 'status'), tonumber(redis.call('HGET', KEYS[6], 'ver'))}
