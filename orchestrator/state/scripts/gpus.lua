-- The holder takes this many GPUs from now on. ARGV: id, fence, nonce, thousandths of a GPU. Answers {OK}.
local refused = refusal(ARGV[2], ARGV[3])
if refused then return {refused} end
local us = now_us()
charge(us)
redis.call('HSET', JOB, 'gpu_milli', ARGV[4], 'gpu_at', string.format('%.0f', math.floor(us / 1000)))
return {'OK'}
