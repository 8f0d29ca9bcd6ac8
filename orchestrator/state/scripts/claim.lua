-- Takes the lease. ARGV: id, nonce, ttl ms, floor fence, floor step, attempts allowed.
-- Answers {code, fence, step to start after, step committed before}.
local nonce, ttl_ms = ARGV[2], ARGV[3]
local floor_fence, floor_step, allowed = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

local j = read('status', 'fence', 'nonce', 'closed', 'step', 'digest', 'ckpt_step', 'attempts', 'claim_from',
  'started_at', 'finished_at', 'floor', 'may_take_gpus', 'reason')
if not j.status then return {'NOTFOUND'} end
local committed = tonumber(j.step)
if j.finished_at ~= '' then
  return {j.closed == 'poison:' .. nonce and 'POISON' or 'TERMINAL', 0, committed, committed}
end

local us = now_us()
local held = j.closed == ''
if held and j.nonce == nonce then -- the reply to this very claim was lost
  extend(us, ttl_ms)
  return {'OK', tonumber(j.fence), committed, tonumber(j.claim_from)}
end
if held and tonumber(redis.call('ZSCORE', LEASES, ID) or 0) > us / 1000 then
  return {'HELD', 0, committed, committed}
end
local abandoned = held and (j.status == 'starting' or j.status == 'running')
if j.status ~= 'queued' and not abandoned then return {'NOT_QUEUED', 0, committed, committed} end

local why = j.status == 'queued' and j.may_take_gpus == '1' and used_up(us)
if why then
  move(j.status, 'paused', why, us)
  return {'NOT_QUEUED', 0, committed, committed}
end

if tonumber(j.attempts) >= allowed then
  local last = abandoned and 'its lease ran out' or j.reason ~= '' and j.reason or 'no word of why'
  move(j.status, 'failed', string.format('%s starts came to no new checkpoint (the events have each); the last ended with: %s',
    j.attempts, last), us)
  close('poison:' .. nonce)
  return {'POISON', 0, committed, committed}
end

if held then charge(until_expiry(us)) end
local fence = math.max(tonumber(j.fence), floor_fence) + 1
-- What a disk ahead of Redis says holds until a holder has registered it (rewind), however many die before that.
local floor = math.max(floor_step, tonumber(j.floor or 0))
local start = math.max(tonumber(j.ckpt_step) or 0, floor)
-- A holder that died before its first commit had the step set back already: what was committed is what it found.
local from = j.digest == '' and math.max(committed, tonumber(j.claim_from) or 0) or committed
redis.call('HSET', JOB, 'status', 'starting', 'reason', '', 'fence', fence, 'nonce', nonce, 'closed', '',
  'attempts', tonumber(j.attempts) + 1, 'ttl_ms', ttl_ms, 'claim_from', from,
  'step', start, 'digest', '', 'floor', floor, 'gpu_milli', 0)
redis.call('HDEL', JOB, 'pause_why')
if j.started_at == '' then redis.call('HSET', JOB, 'started_at', seconds(us)) end
redis.call('ZREM', QUEUE, ID)
extend(us, ttl_ms)
emit('job.claimed', 'info', cjson.encode({from = committed, to = start, fence = fence}), us)
return {'OK', fence, start, from}
