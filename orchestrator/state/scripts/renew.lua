-- Extends the lease and answers {OK, status, steering version, how to pause}. KEYS 8: steering. ARGV: id, fence, nonce, ttl ms.
-- A holder of GPUs whose owner has used its GPU-hours up is told to pause, with a checkpoint.
local refused = refusal(ARGV[2], ARGV[3])
if refused then return {refused} end
local us = now_us()
redis.call('HSET', JOB, 'ttl_ms', ARGV[4])
extend(us, ARGV[4])
local status, how, gpus = unpack(redis.call('HMGET', JOB, 'status', 'pause_how', 'gpu_milli'))
local at_work = (status == 'starting' or status == 'running') and (tonumber(gpus) or 0) > 0
local why = at_work and used_up(us)
if why then
  redis.call('HSET', JOB, 'pause_how', 'save', 'pause_why', why)
  move(status, 'pausing', why, us)
  status, how = 'pausing', 'save'
end
return {'OK', status, tonumber(redis.call('HGET', KEYS[8], 'ver')), how or 'save'}
