-- Grants tokens of one limit, by GCRA on this server's own clock. Every key is in one slot.
--
-- KEYS[1]    the sidecars that asked lately, a sorted set by time
-- KEYS[2..]  buckets: each the time, in microseconds, at which it is full again (TAT)
-- ARGV[1]    microseconds from one token to the next
-- ARGV[2]    tokens that a full bucket holds
-- ARGV[3]    the sidecar that asks
-- ARGV[4]    how long a sidecar counts after it asked, in microseconds
-- ARGV[5..]  tokens wanted, bucket by bucket
--
-- Answers { sidecars, granted, wait, granted, wait, ... }: wait is the microseconds until the
-- bucket has another token, 0 where it has one now.
if not KEYS[1] then
    return {}
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local interval, capacity, remembered = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
local function digits(number)
    return string.format('%.0f', number)
end

redis.call('ZADD', KEYS[1], digits(now), ARGV[3])
-- A score after now is from a clock that has been set back since.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', digits(now - remembered))
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. digits(now), '+inf')
redis.call('PEXPIRE', KEYS[1], digits(remembered / 1000 + 1))
local sidecars = redis.call('ZCARD', KEYS[1])

local span = capacity * interval
-- No sidecar takes more than its part at once, so that those who ask first leave some.
local part = math.max(1, math.ceil(capacity / sidecars))
local answer = { sidecars }
for i = 2, #KEYS do
    -- A bucket is never emptier than empty: not after a rate change, nor after this clock was
    -- set back.
    local tat = math.max(now, math.min(tonumber(redis.call('GET', KEYS[i])) or 0, now + span))
    local held = math.floor((now + span - tat) / interval)
    local granted = math.max(0, math.min(tonumber(ARGV[i + 3]), held, part))
    -- Rounded up: no rounding ever makes a token.
    tat = math.ceil(tat + granted * interval)
    if tat > now then
        redis.call('SET', KEYS[i], digits(tat), 'PX', digits(math.ceil((tat - now) / 1000) + 1))
    end
    answer[#answer + 1] = granted
    answer[#answer + 1] = math.max(0, math.ceil(tat + interval - now - span))
end
return answer
