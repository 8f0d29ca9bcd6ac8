-- Registers a durable checkpoint; from now on the job restarts here. KEYS 8: checkpoints.
-- ARGV: id, fence, nonce, step, path, digest, entry. Answers {OK} or {GAP, newest step possible}.
local step, path, digest = tonumber(ARGV[4]), ARGV[5], ARGV[6]
local refused = refusal(ARGV[2], ARGV[3])
if refused then return {refused} end
local j = read('step', 'ckpt_step', 'ckpt_path', 'ckpt_digest')
if j.ckpt_step == ARGV[4] and j.ckpt_path == path and j.ckpt_digest == digest then return {'OK'} end
if step > tonumber(j.step) or step < (tonumber(j.ckpt_step) or 0) then return {'GAP', tonumber(j.step)} end
redis.call('HSET', JOB, 'ckpt_step', step, 'ckpt_path', path, 'ckpt_digest', digest, 'attempts', 0)
redis.call('HSET', KEYS[8], step, ARGV[7])
return {'OK'}
