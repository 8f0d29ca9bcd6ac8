-- Compare-and-swap of the steering. KEYS 8, 9: steering, kept.
-- ARGV: id, token, version expected, change, state after it, who, most bytes kept of the owner's jobs ('': any).
-- Answers {code, version, effective step}.
local W = KEYS[8]
local token, expected, change, state, who = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local j = read('status', 'step', 'total_steps')
if not j.status then return {'NOTFOUND'} end
local given = kept_reply(token)
if given then
  local version, effective = given:match('^(%d+) (%d+)$')
  return {'OK', tonumber(version), tonumber(effective)}
end
local w = redis.call('HMGET', W, 'ver', 'eff')
if FINAL[j.status] or j.status == 'cancelling' then return {'STATE', tonumber(w[1]), 0} end
if w[1] ~= expected then return {'STALE', tonumber(w[1]), 0} end

-- step + 1 is in flight, unless the job rests: then nobody holds it, and who claims it reads the steering after that.
-- Never before an earlier promise: after a rewind, step + 2 may lie below it.
local version = tonumber(w[1]) + 1
local rests = (j.status == 'paused' or j.status == 'queued') and 1 or 0
local effective = math.max(tonumber(j.step) + 2 - rests, tonumber(w[2]))
if effective > (tonumber(j.total_steps) or math.huge) then return {'LATE', tonumber(w[1]), 0} end
local max_bytes, bytes = tonumber(ARGV[7]), #change + #state
if max_bytes and tonumber(redis.call('HGET', KEYS[9], 'bytes') or 0) + bytes > max_bytes then return {'KEPT_BYTES'} end
redis.call('XADD', WLOG, string.format('%d-1', version), 'eff', effective, 'at', seconds(now_us()),
  'who', who, 'change', change, 'state', state)
keep_bytes(KEYS[9], bytes)
redis.call('HSET', W, 'ver', version, 'eff', effective, 'current', state)
keep_reply(token, string.format('%d %d', version, effective))
return {'OK', version, effective}
