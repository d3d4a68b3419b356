-- Grants tokens of limits, by GCRA on this server's own clock. Every key is in one slot: one shard's.
--
-- KEYS: the shard's marker; then for each group, which is one rate of one limit:
--   the sidecars that asked lately, a sorted set by time
--   the terms in force, where sidecars disagree: of the newest configuration
--   its buckets: each the time, in microseconds, at which it is full again (TAT), and how long filling it takes;
--   where tokens may be given back, what bounds that
-- ARGV: the sidecar that asks; `empty` or `full`, what buckets hold after state was lost; then for each group:
--   how many buckets follow
--   microseconds from one token to the next
--   tokens that a full bucket holds
--   microseconds that a token lives (tau)
--   when the configuration was written, any unit
--   microseconds that a sidecar counts after it asked
--   for each bucket: tokens wanted; how many are of use at least; and 0, or what is given back, since nobody will
--   spend it: how many tokens, when the first of them was granted, and the state that they are of
--
-- Answers { since, now, then for each group: sidecars, tau, and for each bucket: granted, wait }. `since` is when
-- this server's state began, by its clock; wait is the microseconds until it has what is of use, 0 where it has it now.
-- Without groups it answers
-- { since, maxmemory, its policy, replicas, whether they are a fence, version }.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
-- So many spans of half a tau each are remembered: what is older than five of them is not taken back.
local SPANS = 6
local function digits(number)
    return string.format('%.0f', number)
end

-- State is this server's own while it runs, and as long as it was replicated from nobody else. What a restart,
-- a failover or a flush left is not known to be whole: buckets are what they can have become since.
local info = redis.call('INFO', 'server', 'replication')
local of = string.match(info, 'run_id:(%x+)') .. string.match(info, 'master_replid:(%x+)')
local marker = redis.call('HMGET', KEYS[1], 'of', 'since')
local since = tonumber(marker[2] or nil)
if marker[1] ~= of or not since or since > now then
    since = now
    redis.call('HSET', KEYS[1], 'of', of, 'since', digits(now))
elseif #KEYS == 1 then
    -- To be greeted takes what to grant does: memory for a write.
    redis.call('HSET', KEYS[1], 'since', marker[2])
end

if #KEYS == 1 then
    -- A shard that no sidecar has greeted for a month is nobody's.
    redis.call('PEXPIRE', KEYS[1], 2592000000)
    local memory = redis.call('INFO', 'memory')
    return {
        since,
        string.match(memory, 'maxmemory:(%d+)'),
        string.match(memory, 'maxmemory_policy:([%w-]+)'),
        string.match(info, 'connected_slaves:(%d+)'),
        string.find(info, 'min_slaves_good_slaves:', 1, true) and '1' or '0',
        string.match(info, 'redis_version:([%w.]+)'),
    }
end

local answer = { since, now }
local key, arg = 2, 3
while key <= #KEYS do
    local buckets, remembered = tonumber(ARGV[arg]), tonumber(ARGV[arg + 5])
    local interval, capacity, tau = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2]), tonumber(ARGV[arg + 3])
    local ids, terms = KEYS[key], KEYS[key + 1]

    redis.call('ZADD', ids, digits(now), ARGV[1])
    -- A score after now is from a clock that has been set back since.
    redis.call('ZREMRANGEBYSCORE', ids, '-inf', digits(now - remembered))
    redis.call('ZREMRANGEBYSCORE', ids, '(' .. digits(now), '+inf')
    redis.call('PEXPIRE', ids, digits(remembered / 1000 + 1))
    local sidecars = redis.call('ZCARD', ids)

    -- What is newest holds for all; of what is as new, what admits less. So long after it was last asked by who
    -- has it that the others have it by then.
    local written = tonumber(ARGV[arg + 4])
    local mine = table.concat({ ARGV[arg + 4], ARGV[arg + 1], ARGV[arg + 2], ARGV[arg + 3] }, ' ')
    local theirs = redis.call('GET', terms)
    local newest, i, c, t = string.match(theirs or '', '^(%d+) (%S+) (%S+) (%S+)$')
    newest, i, c, t = tonumber(newest or nil), tonumber(i or nil), tonumber(c or nil), tonumber(t or nil)
    local stricter = newest == written and (i > interval or i == interval and (c < capacity or c == capacity and t < tau))
    if newest and (newest > written or stricter) then
        interval, capacity, tau = i, c, t
    else
        redis.call('SET', terms, mine, 'PX', digits(math.max(600000, remembered / 1000 + 1)))
    end

    local span = capacity * interval
    local filling = digits(math.max(1, span))
    local floor = ARGV[2] == 'full' and 0 or since + span
    answer[#answer + 1] = sidecars
    answer[#answer + 1] = math.floor(tau)
    for b = 0, buckets - 1 do
        local bucket = KEYS[key + 2 + b]
        local wanted, least = tonumber(ARGV[arg + 6 + 3 * b]), tonumber(ARGV[arg + 7 + 3 * b])
        least = math.min(least, math.floor(capacity))
        local stored = redis.call('GET', bucket)
        local full_at, took, rest = string.match(stored or '', '^(%d+) (%d+)(.*)$')
        local every, list = string.match(rest or '', '^ i(%S+)( [%d ]+)$')
        if rest ~= '' and not every then
            full_at = nil
        end
        local missing = math.max(0, (tonumber(full_at or nil) or 0) - now)
        if stored and not full_at then
            -- What nobody here has written says nothing: empty.
            missing = span
        elseif took and took ~= filling then
            -- Under another rate or burst it stays as full as it was.
            missing = missing * span / tonumber(took)
        end
        -- A bucket is never emptier than empty: not after this clock was set back either.
        local tat = math.max(floor, now + math.min(missing, span))
        local count, granted_at, state = string.match(ARGV[arg + 8 + 3 * b], '^(%d+) (%d+) (%d+)$')
        granted_at = tonumber(granted_at or nil)
        -- How much was missing at least, in each of the last spans of time: when it began, and microseconds.
        local spans = {}
        if every == tostring(interval) and took == filling then
            for begin, least_missing in string.gmatch(list, '(%d+) (%d+)') do
                spans[#spans + 1] = { tonumber(begin), tonumber(least_missing) }
            end
        end
        local last = spans[#spans]
        if last and last[1] > now then
            spans, last = {}, nil
        elseif last then
            last[2] = math.min(last[2], tat - now)
        end
        if not last or now - last[1] > tau / 2 then
            spans[#spans + 1] = { now, span }
            if #spans > SPANS then
                table.remove(spans, 1)
            end
        end
        -- What is given back was debited when it was granted; what was not missing at some time since has come back
        -- already. What is taken back has not been missing ever since it was granted.
        if count and tonumber(state) == since and granted_at <= now and granted_at >= spans[1][1] then
            local back, first = math.min(tonumber(count) * interval, tat - now), #spans + 1
            repeat
                first = first - 1
                back = math.min(back, spans[first][2])
            until spans[first][1] <= granted_at
            for i = first, #spans do
                spans[i][2] = spans[i][2] - back
            end
            tat = tat - back
        end
        local held = math.max(0, math.floor((now + span - tat) / interval))
        local granted = math.min(wanted, held)
        if granted < math.min(wanted, least) then
            granted = 0
        end
        -- Rounded up: no rounding ever makes a token.
        tat = math.ceil(tat + granted * interval)
        if tat > now or stored then
            local value = digits(tat) .. ' ' .. filling
            if count or every then
                value = value .. ' i' .. tostring(interval)
                for i = 1, #spans do
                    value = value .. ' ' .. digits(spans[i][1]) .. ' ' .. digits(math.floor(spans[i][2]))
                end
            end
            redis.call('SET', bucket, value, 'PX', digits(math.ceil((tat - now) / 1000) + 1))
        end
        answer[#answer + 1] = granted
        answer[#answer + 1] = math.max(0, math.ceil(tat + math.max(1, least) * interval - now - span))
    end
    key, arg = key + 2 + buckets, arg + 6 + 3 * buckets
end
return answer
