-- Notes that an API key was used, at most once a minute. KEYS 1: the key's hash. Answers {OK} or {NOTFOUND}.
local k = redis.call('HMGET', KEYS[1], 'sha256', 'last_used_at')
if not k[1] then return {'NOTFOUND'} end
local us = now_us()
if us / 1000000 - tonumber(k[2] or 0) >= 60 then redis.call('HSET', KEYS[1], 'last_used_at', seconds(us)) end
return {'OK'}
