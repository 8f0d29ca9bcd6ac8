-- Adds a step to the ledger. KEYS 8, 9: steps, kept. ARGV: id, fence, nonce, step, digest, record.
-- Answers {OK} or {GAP, step expected}.
local fence, step, digest = ARGV[2], tonumber(ARGV[4]), ARGV[5]
local refused = refusal(fence, ARGV[3])
if refused then return {refused} end
local j = read('step', 'digest', 'ttl_ms')
local last = tonumber(j.step)
if step == last and digest == j.digest then return {'OK'} end -- the reply to this commit was lost
if step ~= last + 1 then return {'GAP', last + 1} end

local us = now_us()
-- The ID is a second fence: Redis itself refuses one that is not above all before it.
local added = redis.pcall('XADD', KEYS[8], string.format('%s-%d', fence, step),
  'digest', digest, 'at', seconds(us), 'record', ARGV[6])
if type(added) == 'table' and added.err then
  if added.err:find('equal or smaller', 1, true) then return {'FENCED'} end
  return added
end
keep_bytes(KEYS[9], #ARGV[6])
redis.call('HSET', JOB, 'step', step, 'digest', digest)
extend(us, j.ttl_ms)
return {'OK'}
