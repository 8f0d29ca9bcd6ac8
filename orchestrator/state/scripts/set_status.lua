-- A status change by the holder. ARGV: id, fence, nonce, to, reason, then the statuses it may come from.
local to, reason = ARGV[4], ARGV[5]
local refused = refusal(ARGV[2], ARGV[3])
if refused then return {refused} end
local from = redis.call('HGET', JOB, 'status')
if from == to then return {'OK'} end
for i = 6, #ARGV do
  if ARGV[i] == from then
    move(from, to, reason, now_us())
    return {'OK'}
  end
end
return {'ILLEGAL', from}
