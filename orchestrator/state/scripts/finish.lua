-- The holder's last word: status and end of the lease together.
-- ARGV: id, fence, nonce, to, reason, then the statuses it may come from.
local to, reason = ARGV[4], ARGV[5]
local j = read('status', 'fence', 'nonce', 'closed')
if j.fence == ARGV[2] and j.nonce == ARGV[3] and j.closed == 'finish:' .. to then return {'OK'} end
local refused = refusal(ARGV[2], ARGV[3])
if refused then return {refused} end
for i = 6, #ARGV do
  if ARGV[i] == j.status then
    move(j.status, to, reason, now_us())
    close('finish:' .. to)
    return {'OK'}
  end
end
return {'ILLEGAL', j.status}
