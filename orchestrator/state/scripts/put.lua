-- Writes fields of one hash under the fence. KEYS 8: the hash. ARGV: id, fence, nonce, field, value, ...
local refused = refusal(ARGV[2], ARGV[3])
if refused then return {refused} end
redis.call('HSET', KEYS[8], unpack(ARGV, 4))
return {'OK'}
