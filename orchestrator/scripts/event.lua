-- Appends one event. ARGV: id, token, fence, nonce (both empty: no lease asked for), type, level, data.
-- Answers {OK, number}.
local token, fence, nonce = ARGV[2], ARGV[3], ARGV[4]
if redis.call('EXISTS', JOB) == 0 then return {'NOTFOUND'} end
local given = kept_reply(token)
if given then return {'OK', tonumber(given)} end
if fence ~= '' then
  local refused = refusal(fence, nonce)
  if refused then return {refused} end
end
local seq = emit(ARGV[5], ARGV[6], ARGV[7], now_us())
keep_reply(token, tostring(seq))
return {'OK', seq}
