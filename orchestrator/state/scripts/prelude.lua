-- Put in front of every script by the loader, so a rule that several scripts share is written once.
-- KEYS 1..7 are the same for all on a job: job, events, replies, queue, leases, steering log, GPU time and failures. ARGV[1] is the job id.
-- Every script answers {code, ...}, takes the time from Redis, and validates before its first write
-- (Redis does not undo the earlier writes of a script that fails).
-- A Redis whose memory is full refuses a script's write that may take memory, but not after one that takes none (HDEL, DEL):
-- scripts that stop whoever fills it begin with such a one.
local JOB, EVENTS, REPLIES, QUEUE, LEASES, WLOG = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local GPU_TIME = KEYS[7]
local ID = ARGV[1]
local FINAL = {succeeded = true, failed = true, cancelled = true}
local EVENTS_KEPT, REPLIES_KEPT, REJECTED_TOLD = 10000, 64, 16
-- What one priority is worth in the queue, in us: 38 years, more than any two jobs' ages differ. Priorities go from
-- -5 to 5, so a score stays below 2^53, where a double is exact to the microsecond, until the year 2065.
local PRIORITY_US = 1.2e15
local DAY_MS, GPU_HOUR = 86400000, 3.6e9 -- the latter in millionths of a GPU second

local function now_us()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function seconds(us) return string.format('%.6f', us / 1000000) end

-- The named fields of the job hash; a field that is absent reads as false.
local function read(...)
  local names, values, out = {...}, redis.call('HMGET', JOB, ...), {}
  for i, name in ipairs(names) do out[name] = values[i] end
  return out
end

-- nil when (fence, nonce) still holds the job, else the code to answer.
local function refusal(fence, nonce)
  local j = read('status', 'fence', 'nonce', 'closed')
  if not j.status then return 'NOTFOUND' end
  if j.fence ~= fence or j.nonce ~= nonce or j.closed ~= '' then return 'FENCED' end
end

-- Replies already given to recent calls, so that a call retried after a lost reply acts once.
local function kept_reply(token)
  for _, entry in ipairs(redis.call('LRANGE', REPLIES, 0, -1)) do
    if entry:sub(1, #token + 1) == token .. ' ' then return entry:sub(#token + 2) end
  end
end

local function keep_reply(token, reply)
  redis.call('LPUSH', REPLIES, token .. ' ' .. reply)
  redis.call('LTRIM', REPLIES, 0, REPLIES_KEPT - 1)
end

-- Counts what is kept for as long as the job is, in its owner's sum too; `delete` takes it off again.
local function keep_bytes(owners, bytes)
  redis.call('HINCRBY', JOB, 'kept_bytes', bytes)
  redis.call('HINCRBY', owners, 'bytes', bytes)
end

local function append(stream, seq, kind, level, json, us)
  redis.call('XADD', stream, 'MAXLEN', '~', EVENTS_KEPT, string.format('%d-0', seq),
    'type', kind, 'level', level, 'at', seconds(us), 'data', json)
end

-- Appends an event under the job's next number; the counter moves in the same script: no gap, no repeat.
local function emit(kind, level, json, us)
  local seq = redis.call('HINCRBY', JOB, 'seq', 1)
  append(EVENTS, seq, kind, level, json, us)
  return seq
end

-- The UTC month that holds a time: its name, such as 2026-11, and where it ends, both times in ms since 1970.
local function month(ms)
  local day, first, year = math.floor(ms / DAY_MS), 0, 1970
  local function length() return (year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)) and 366 or 365 end
  while first + length() <= day do first, year = first + length(), year + 1 end
  for number, days in ipairs({31, length() - 337, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}) do
    first = first + days
    if day < first then return string.format('%d-%02d', year, number), first * DAY_MS end
  end
end

-- Counts what the holder's GPUs took since they were last counted, once: in the job, and in its owner's month. In
-- millionths of a GPU second, so that thousandths of a GPU for a ms are whole numbers.
local function charge(us)
  local j, to = read('gpu_milli', 'gpu_at'), math.floor(us / 1000)
  local gpus, from = tonumber(j.gpu_milli) or 0, tonumber(j.gpu_at) or 0
  if gpus == 0 or from >= to then return end
  redis.call('HSET', JOB, 'gpu_at', string.format('%.0f', to))
  redis.call('HINCRBY', JOB, 'gpu_used', string.format('%.0f', gpus * (to - from)))
  while from < to do
    local name, ends = month(from)
    local part = math.min(to, ends) - from
    redis.call('HINCRBY', GPU_TIME, name, string.format('%.0f', gpus * part))
    from = from + part
  end
end

-- Why the owner may take no more GPUs this month; nil while it may.
local function used_up(us)
  local limit = tonumber(redis.call('HGET', GPU_TIME, 'limit') or '')
  if not limit then return end
  local name, ends = month(math.floor(us / 1000))
  if (tonumber(redis.call('HGET', GPU_TIME, name)) or 0) < limit then return end
  return string.format("the owner's %.6g GPU-hours of %s are used up; they renew on %s-01 (UTC): resume the job then",
    limit / GPU_HOUR, name, (month(ends)))
end

local function extend(us, ttl_ms)
  charge(us)
  redis.call('ZADD', LEASES, string.format('%.0f', math.floor(us / 1000) + tonumber(ttl_ms)), ID)
end

-- Until when GPUs of a holder count that wrote no more: at most until its lease ran out.
local function until_expiry(us)
  return math.min(us, 1000 * tonumber(redis.call('ZSCORE', LEASES, ID) or 0))
end

-- Ends the holder's right to write; `how` lets a retry of the same ending be told from a zombie.
local function close(how)
  charge(until_expiry(now_us()))
  redis.call('HSET', JOB, 'closed', how, 'gpu_milli', 0)
  redis.call('ZREM', LEASES, ID)
end

-- Where a job stands in its owner's queue, lowest first: higher priorities, then older jobs. Its order and priority
-- never change, so it comes back to the same place.
local function queue_score()
  local j = read('order', 'priority')
  return string.format('%.0f', tonumber(j.order) - (tonumber(j.priority) or 0) * PRIORITY_US)
end

-- Tells of the changes of steering, the last few, that a job which ends was promised and never reached. Not of one that
-- was told as applied: a crash may have undone its step since.
local function reject_changes(to, us)
  local j, rejected = read('step', 'applied'), {}
  local committed, applied = tonumber(j.step), tonumber(j.applied) or 0
  for _, entry in ipairs(redis.call('XREVRANGE', WLOG, '+', '-', 'COUNT', REJECTED_TOLD)) do
    local effective, version = tonumber(entry[2][2]), tonumber(entry[1]:match('^%d+')) -- the entry's first field, eff
    if effective <= committed or version <= applied then break end
    table.insert(rejected, 1, {version = version, effective_step = effective})
  end
  for _, change in ipairs(rejected) do
    change.reason = string.format('the job ended at step %d: %s', committed, to)
    emit('steering.rejected', 'warning', cjson.encode(change), us)
  end
end

-- One status change with all that belongs to it: queue entry, times, event. Legality is the caller's. What a person asked
-- for says who did, also where the holder brings it about later.
local function move(from, to, reason, us, kind, level)
  local by = to ~= 'succeeded' and to ~= 'failed' and redis.call('HGET', JOB, 'asked_by') or nil
  if to ~= 'pausing' and to ~= 'cancelling' then redis.call('HDEL', JOB, 'asked_by') end
  if by and to ~= 'queued' then
    reason = reason == '' and to .. ' by ' .. by or reason:gsub('on request$', function() return 'by ' .. by end)
  end
  if to == 'paused' then -- for want of GPU-hours, or by a rule of its own, whatever the holder says of it
    local why = redis.call('HGET', JOB, 'pause_why')
    if why then reason = why end
    redis.call('HDEL', JOB, 'pause_why')
  end
  redis.call('HSET', JOB, 'status', to, 'reason', reason)
  if to == 'queued' then
    redis.call('ZADD', QUEUE, queue_score(), ID)
  else
    redis.call('ZREM', QUEUE, ID)
  end
  if FINAL[to] then
    redis.call('HSET', JOB, 'finished_at', seconds(us))
    reject_changes(to, us)
  end
  emit(kind or 'job.' .. to, level or (to == 'failed' and 'error' or 'info'),
    cjson.encode({from = from, to = to, reason = reason, by = by}), us)
  if to == 'failed' then redis.call('HINCRBY', GPU_TIME, 'failed', 1) end -- never less, whatever jobs are forgotten
end

-- The holder is gone: what a person asked for happens at once, anything else goes back to the queue.
local function land(from, reason, us, level)
  if from == 'cancelling' then
    move(from, 'cancelled', reason, us)
    return 'cancelled'
  elseif from == 'pausing' then
    move(from, 'paused', reason, us)
    return 'paused'
  end
  move(from, 'queued', reason, us, 'job.requeued', level)
  return 'queued'
end
