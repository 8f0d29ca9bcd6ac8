-- Keeps a webhook, unless its owner has enough. KEYS 1, 2: the owner's webhooks, its cursors.
-- ARGV: id, document, most webhooks, then pairs job id, seq of its last event so far.
-- Answers {OK} or {FULL}. A call repeated after a lost reply keeps it once, as the id is the same.
local known = redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1
if not known and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return {'FULL'} end
for i = 4, #ARGV, 2 do redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return {'OK'}
