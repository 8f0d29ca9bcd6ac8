-- Appends one event. KEYS 8, 9: told, marks. ARGV: id, token, fence, nonce (both empty: no lease asked for), type, level, data,
-- what it tells (empty: nothing that is told only once). Answers {OK, number}.
local TOLD = KEYS[8]
local token, fence, nonce, once = ARGV[2], ARGV[3], ARGV[4], ARGV[8]
if redis.call('EXISTS', JOB) == 0 then return {'NOTFOUND'} end
local given = kept_reply(token)
if given then return {'OK', tonumber(given)} end
if fence ~= '' then
  local refused = refusal(fence, nonce)
  if refused then return {refused} end
end
if once ~= '' then
  local told = redis.call('HGET', TOLD, once)
  if told then return {'OK', tonumber(told)} end
end
local us = now_us()
local seq = emit(ARGV[5], ARGV[6], ARGV[7], us)
if ARGV[5] == 'checkpoint.failed' then redis.call('HINCRBY', JOB, 'ckpt_failures', 1) end -- for monitors
if once ~= '' then redis.call('HSET', TOLD, once, seq) end
local applied = once:match('^steering (%d+)$')
if applied then
  redis.call('HSET', JOB, 'applied', applied) -- for reject_changes
elseif once ~= '' then -- a collapse, a guardrail: thousands of others may follow. What was steered is in its log
  append(KEYS[9], seq, ARGV[5], ARGV[6], ARGV[7], us)
end
keep_reply(token, tostring(seq))
return {'OK', seq}
