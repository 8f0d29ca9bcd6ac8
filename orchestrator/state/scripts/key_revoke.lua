-- Revokes an API key for good; again changes nothing. KEYS 1: the key's hash. ARGV: who does
-- ('': not known). Answers {OK} or {NOTFOUND}.
local k = redis.call('HMGET', KEYS[1], 'sha256', 'revoked_at')
if not k[1] then return {'NOTFOUND'} end
if not k[2] then
  redis.call('HDEL', KEYS[1], 'revoked_at') -- first a write that takes no memory: see the prelude
  redis.call('HSET', KEYS[1], 'revoked_at', seconds(now_us()), 'revoked_by', ARGV[1])
end
return {'OK'}
