-- Extends the lease and answers {OK, status, steering version, how to pause}. KEYS 7: steering. ARGV: id, fence, nonce, ttl ms.
local refused = refusal(ARGV[2], ARGV[3])
if refused then return {refused} end
redis.call('HSET', JOB, 'ttl_ms', ARGV[4])
extend(now_us(), ARGV[4])
local status, how = unpack(redis.call('HMGET', JOB, 'status', 'pause_how'))
return {'OK', status, tonumber(redis.call('HGET', KEYS[7], 'ver')), how or 'save'}
