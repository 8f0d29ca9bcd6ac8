-- The holder hands the job back unfinished, or who saw it crash does (1): only then is the attempt counted.
-- ARGV: id, fence, nonce, reason, crashed. Answers {OK, status}.
local j = read('status', 'fence', 'nonce', 'closed', 'attempts')
if j.fence == ARGV[2] and j.nonce == ARGV[3] and j.closed == 'release' then return {'OK', j.status} end
local refused = refusal(ARGV[2], ARGV[3])
if refused then return {refused} end
local crashed = ARGV[5] == '1'
if not crashed then redis.call('HSET', JOB, 'attempts', math.max(0, tonumber(j.attempts) - 1)) end
close('release')
return {'OK', land(j.status, ARGV[4], now_us(), crashed and 'warning' or nil)}
