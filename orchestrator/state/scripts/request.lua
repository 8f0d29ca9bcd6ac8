-- What a person asks of a job: cancel, pause, resume. KEYS as common.
-- ARGV: id, token, reason, reset attempts (0|1), jobs allowed in queue and at work (0: any), how a pause is made
-- (save: with a checkpoint, latest: at the newest one), who asks ('': the job's own rules), and why such a
-- rule pauses it ('': nothing to say), then pairs from, to.
-- Answers {OK, status}, {ILLEGAL, status}, {QUOTA, status} or {GPU_QUOTA, status}.
local token, reason, reset, max_active, how = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
local by, why = ARGV[7], ARGV[8]
local from = redis.call('HGET', JOB, 'status')
if not from then return {'NOTFOUND'} end
local given = kept_reply(token)
if given then return {'OK', given} end
for i = 9, #ARGV, 2 do
  local to = ARGV[i + 1]
  if ARGV[i] == from then
    if to == 'pausing' then redis.call('HSET', JOB, 'pause_how', how) end -- who asks last decides
    if from ~= to then
      if to == 'queued' and max_active > 0 and redis.call('ZCARD', QUEUE) + redis.call('ZCARD', LEASES) >= max_active then
        return {'QUOTA', from}
      end
      if to == 'queued' and redis.call('HGET', JOB, 'may_take_gpus') == '1' and used_up(now_us()) then
        return {'GPU_QUOTA', from}
      end
      if FINAL[to] or to == 'cancelling' then redis.call('HDEL', JOB, 'pause_why') end -- also to be taken by a full Redis
      redis.call('HDEL', JOB, 'asked_by')
      if to == 'pausing' and why ~= '' then redis.call('HSET', JOB, 'pause_why', why) end -- however it comes to its end
      if by ~= '' then redis.call('HSET', JOB, 'asked_by', by) end
      if reset == '1' then redis.call('HSET', JOB, 'attempts', 0) end
      move(from, to, reason, now_us())
      keep_reply(token, to)
    end
    return {'OK', to}
  end
end
return {'ILLEGAL', from}
