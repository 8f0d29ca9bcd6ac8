-- Gives a webhook another document, which differs in its secret. KEYS 1: the owner's webhooks. ARGV: id, document.
-- Answers {OK} or {GONE}: one that was removed meanwhile does not come back.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return {'GONE'} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return {'OK'}
