-- The holder hands the job back unfinished; it was not a crash, so the attempt is not counted.
-- ARGV: id, fence, nonce, reason. Answers {OK, status}.
local j = read('status', 'fence', 'nonce', 'closed', 'attempts')
if j.fence == ARGV[2] and j.nonce == ARGV[3] and j.closed == 'release' then return {'OK', j.status} end
local refused = refusal(ARGV[2], ARGV[3])
if refused then return {refused} end
redis.call('HSET', JOB, 'attempts', math.max(0, tonumber(j.attempts) - 1))
close('release')
return {'OK', land(j.status, ARGV[4], now_us())}
