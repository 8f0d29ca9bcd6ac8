-- Edits the list of checkpoints. KEYS 8: checkpoints. ARGV: id, fence, nonce, number of removals,
-- the removals, then pairs step, entry. Answers {OK} or {NEWEST}: the restart point is never removed.
local refused = refusal(ARGV[2], ARGV[3])
if refused then return {refused} end
local last_removal = 4 + tonumber(ARGV[4])
local newest = redis.call('HGET', JOB, 'ckpt_step')
for i = 5, last_removal do
  if ARGV[i] == newest then return {'NEWEST'} end
end
for i = 5, last_removal do redis.call('HDEL', KEYS[8], ARGV[i]) end
for i = last_removal + 1, #ARGV, 2 do redis.call('HSET', KEYS[8], ARGV[i], ARGV[i + 1]) end
return {'OK'}
