-- Grants tokens of limits, by GCRA on this server's own clock. Every key is in one slot: one shard's.
--
-- KEYS: the shard's marker; then for each group, which is one rate of one limit:
--   the sidecars that asked lately, a sorted set by time
--   the terms in force, where sidecars disagree: of the newest configuration
--   its buckets: each the time, in microseconds, at which it is full again (TAT), and how long filling it takes
-- ARGV: the sidecar that asks; `empty` or `full`, what buckets hold after state was lost; then for each group:
--   how many buckets follow
--   microseconds from one token to the next
--   tokens that a full bucket holds
--   microseconds that a token lives (tau)
--   when the configuration was written, any unit
--   microseconds that a sidecar counts after it asked
--   for each bucket: tokens wanted, and how many are of use at least
--
-- Answers { since, now, then for each group: sidecars, tau, and for each bucket: granted, held, wait }. `since` is
-- when this server's state began, by its clock; held is what the bucket had before, in thousandths of what it holds when full;
-- wait is the microseconds until it has what is of use, 0 where it has it now. Without groups it answers { since, maxmemory, its policy, replicas, whether they are a fence, version }.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
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

    local written = tonumber(ARGV[arg + 4])
    local mine = table.concat({ ARGV[arg + 4], ARGV[arg + 1], ARGV[arg + 2], ARGV[arg + 3] }, ' ')
    local theirs = redis.call('GET', terms)
    local newest, i, c, t = string.match(theirs or '', '^(%d+) (%S+) (%S+) (%S+)$')
    if newest and tonumber(newest) > written then
        interval, capacity, tau = tonumber(i), tonumber(c), tonumber(t)
    else
        redis.call('SET', terms, mine, 'PX', digits(remembered / 1000 + 1))
    end

    local span = capacity * interval
    local filling = digits(math.max(1, span))
    local floor = ARGV[2] == 'full' and 0 or since + span
    answer[#answer + 1] = sidecars
    answer[#answer + 1] = math.floor(tau)
    for b = 0, buckets - 1 do
        local bucket = KEYS[key + 2 + b]
        local wanted, least = tonumber(ARGV[arg + 6 + 2 * b]), tonumber(ARGV[arg + 7 + 2 * b])
        least = math.min(least, math.floor(capacity))
        local full_at, took = string.match(redis.call('GET', bucket) or '', '^(%d+) (%d+)$')
        local missing = math.max(0, (tonumber(full_at or nil) or 0) - now)
        if took and took ~= filling then
            -- Under another rate or burst it stays as full as it was.
            missing = missing * span / tonumber(took)
        end
        -- A bucket is never emptier than empty: not after this clock was set back either.
        local tat = math.max(floor, now + math.min(missing, span))
        local held = math.max(0, math.floor((now + span - tat) / interval))
        local granted = math.min(wanted, held)
        if granted < math.min(wanted, least) then
            granted = 0
        end
        -- Rounded up: no rounding ever makes a token.
        tat = math.ceil(tat + granted * interval)
        if tat > now then
            redis.call('SET', bucket, digits(tat) .. ' ' .. filling, 'PX', digits(math.ceil((tat - now) / 1000) + 1))
        end
        answer[#answer + 1] = granted
        answer[#answer + 1] = math.floor(1000 * held / capacity)
        answer[#answer + 1] = math.max(0, math.ceil(tat + math.max(1, least) * interval - now - span))
    end
    key, arg = key + 2 + buckets, arg + 6 + 2 * buckets
end
return answer
