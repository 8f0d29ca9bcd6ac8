-- Accepts a job once. KEYS 8..14: idempotency, jobs, spec, steering, owners, kept, answers.
-- ARGV: id, spec sha256, idempotency ttl ms (0: no key given), name, spec, steering, owner, most active jobs ('': any),
-- the job and the step that it was forked from ('': it was not), priority (-5 to 5), who submits it, whether it may take
-- GPUs (0|1), sha256 of the body that asked for it, most jobs in all ('': any), most bytes kept of them ('': any),
-- the spec's metadata as JSON ('': to be read in the spec). Answers {NEW | REPLAY | CONFLICT | QUOTA | KEPT | KEPT_BYTES |
-- KEPT_ANSWERS | GPU_QUOTA, id, the job's fields but its metadata as JSON}. With a key the fields are those of the first
-- answer, for as long as the key is kept, whatever has become of the job.
local IDEM, JOBS, SPEC, W = KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local OWNERS, owner, max_active = KEYS[12], ARGV[7], tonumber(ARGV[8])
local priority, asked = ARGV[11], ARGV[14]
local digest, ttl_ms, name, spec, steering = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]

if ttl_ms > 0 then
  local kept = redis.call('GET', IDEM)
  if kept then
    local job_id, body, answer = kept:match('^([^|]+)|([^|]+)|(.+)$')
    return {body == asked and 'REPLAY' or 'CONFLICT', job_id, answer}
  end
end
local function fields()
  local flat, out = redis.call('HGETALL', JOB), {}
  for i = 1, #flat, 2 do
    if flat[i] ~= 'metadata' then -- may be large, and no answer has it
      table.insert(out, flat[i])
      table.insert(out, flat[i + 1])
    end
  end
  return cjson.encode(out)
end
local existing = redis.call('HGET', JOB, 'spec_digest')
if existing then return {existing == digest and 'REPLAY' or 'CONFLICT', ID, fields()} end

-- A job is active exactly while it waits or somebody holds it.
if max_active and redis.call('ZCARD', QUEUE) + redis.call('ZCARD', LEASES) >= max_active then
  return {'QUOTA', ID, '[]'}
end
local max_kept = tonumber(ARGV[15])
if max_kept and redis.call('ZCARD', JOBS) >= max_kept then return {'KEPT', ID, '[]'} end
-- The steering is kept three times: as it stands, and in the log as a change and as the state after it.
local max_bytes, bytes = tonumber(ARGV[16]), #spec + 3 * #steering + #ARGV[17]
if max_bytes and tonumber(redis.call('HGET', KEYS[13], 'bytes') or 0) + bytes > max_bytes then
  return {'KEPT_BYTES', ID, '[]'}
end
local us = now_us()
local now_ms = math.floor(us / 1000)
if ttl_ms > 0 and max_kept then -- what is stored for a key outlives its job, and no delete takes it away
  redis.call('ZREMRANGEBYSCORE', KEYS[14], '-inf', now_ms)
  if redis.call('ZCARD', KEYS[14]) >= max_kept then return {'KEPT_ANSWERS', ID, '[]'} end
end
if ARGV[13] == '1' and used_up(us) then return {'GPU_QUOTA', ID, '[]'} end

-- Strictly increasing, whatever the clock does: a page cursor then points at exactly one job.
local newest = redis.call('ZREVRANGE', JOBS, 0, 0, 'WITHSCORES')[2]
local order = string.format('%.0f', math.max(us, newest and tonumber(newest) + 1 or 0))

redis.call('HSET', JOB, 'schema_v', 1, 'id', ID, 'name', name, 'status', 'validating', 'reason', '',
  'order', order, 'priority', priority, 'created_at', seconds(us), 'started_at', '', 'finished_at', '', 'spec_digest', digest,
  'fence', 0, 'nonce', '', 'closed', 'new', 'attempts', 0, 'ttl_ms', 0, 'claim_from', 0,
  'step', 0, 'digest', '', 'total_steps', '', 'progress', '{}', 'seq', 0,
  'ckpt_step', '', 'ckpt_path', '', 'ckpt_digest', '', 'parent', ARGV[9], 'parent_step', ARGV[10],
  'may_take_gpus', ARGV[13], 'gpu_milli', 0, 'gpu_at', 0, 'gpu_used', 0, 'kept_bytes', bytes,
  'metadata', ARGV[17], 'submitted_by', ARGV[12])
redis.call('HINCRBY', KEYS[13], 'bytes', bytes)
redis.call('SET', SPEC, spec)
redis.call('HSET', W, 'ver', 1, 'eff', 0, 'current', steering)
redis.call('XADD', WLOG, '1-1', 'eff', 0, 'at', seconds(us), 'who', ARGV[12],
  'change', steering, 'state', steering)
redis.call('ZADD', JOBS, order, ID)
redis.call('SADD', OWNERS, owner)
move('validating', 'queued', '', us)
local answer = fields()
if ttl_ms > 0 then
  redis.call('SET', IDEM, ID .. '|' .. asked .. '|' .. answer, 'PX', ttl_ms)
  redis.call('ZADD', KEYS[14], string.format('%.0f', now_ms + ttl_ms), ID)
  redis.call('PEXPIRE', KEYS[14], ttl_ms)
end
return {'NEW', ID, answer}
