-- One job whose lease may have expired: marked on the first pass, taken back on the second, so a holder
-- that is only late has the time between them to renew. KEYS 8: stalled. ARGV: id, token of this pass, least time
-- between the two in ms: several workers sweep.
-- Answers {LIVE}, {MARKED} or {TAKEN}.
local STALLED, token = KEYS[8], ARGV[2]
if kept_reply(token) then return {'TAKEN'} end
local expiry = redis.call('ZSCORE', LEASES, ID)
local status = redis.call('HGET', JOB, 'status')
local us = now_us()
if not expiry or tonumber(expiry) > us / 1000 then
  redis.call('HDEL', STALLED, ID)
  return {'LIVE'}
end
if not status then -- a lease without a job (a restored backup): nothing to take back
  redis.call('ZREM', LEASES, ID)
  return {'LIVE'}
end
local seen, by, at = (redis.call('HGET', STALLED, ID) or ''):match('^(%S+) (%S+) (%S+)$')
if seen ~= expiry then -- a renewed lease has another expiry: marked anew
  redis.call('HSET', STALLED, ID, string.format('%s %s %.0f', expiry, token, us))
  return {'MARKED'}
end
if by == token then return {'MARKED'} end -- this pass again: its reply was lost
if us - tonumber(at) < tonumber(ARGV[3]) * 1000 then return {'MARKED'} end
redis.call('HDEL', STALLED, ID)
close('sweep')
land(status, 'lease expired', us, 'warning')
keep_reply(token, 'TAKEN')
return {'TAKEN'}
