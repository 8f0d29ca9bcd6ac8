-- Falls back to an older registered checkpoint (the newest proved damaged). KEYS 8: checkpoints.
-- ARGV: id, fence, nonce, step. Only before this holder's first commit: its ledger entries stay ordered.
-- Answers {OK}, {ABSENT} or {GAP, step expected}.
local step = tonumber(ARGV[4])
local refused = refusal(ARGV[2], ARGV[3])
if refused then return {refused} end
local j = read('step', 'digest', 'ckpt_step')
if j.step == ARGV[4] and j.ckpt_step == ARGV[4] and j.digest == '' then
  redis.call('HSET', JOB, 'floor', 0) -- what the claim found on disk is registered
  return {'OK'}
end
local entry = redis.call('HGET', KEYS[8], ARGV[4])
if not entry then return {'ABSENT'} end
if j.digest ~= '' or step > tonumber(j.step) then return {'GAP', tonumber(j.step) + 1} end

local checkpoint = cjson.decode(entry)
redis.call('HSET', JOB, 'step', step, 'ckpt_step', step, 'floor', 0,
  'ckpt_path', checkpoint.path, 'ckpt_digest', checkpoint.digest)
for _, other in ipairs(redis.call('HKEYS', KEYS[8])) do
  if tonumber(other) > step then redis.call('HDEL', KEYS[8], other) end
end
emit('job.rewound', 'warning', cjson.encode({from = tonumber(j.step), to = step}), now_us())
return {'OK'}
