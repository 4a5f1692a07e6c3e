#!lua name=wallet
-- A wallet in Redis: one function call is one transfer, which Redis runs alone and appends to its
-- file as a whole. Per account a hash (balance, number of entries), a list of entries with the
-- balance after each, and a hash per hour; per request its result, so that a retry is answered.

local function transfer(_, args)
  local request, source, destination = args[1], tonumber(args[2]), tonumber(args[3])
  local amount, accounts = tonumber(args[4]), tonumber(args[5])
  -- The load draws both accounts from 0 up, so the same one is sometimes drawn twice.
  source = source % accounts + 1
  destination = destination % accounts + 1
  if source == destination then destination = source % accounts + 1 end
  amount = amount % 100 + 1

  local request_key = 'request:' .. request
  local known = redis.call('GET', request_key)
  if known then return known end
  local source_key, destination_key = 'account:' .. source, 'account:' .. destination
  local balance = tonumber(redis.call('HGET', source_key, 'balance'))
  if not balance or redis.call('EXISTS', destination_key) == 0 then return 'NO_ACCOUNT' end
  if balance < amount then return 'INSUFFICIENT_FUNDS' end

  local clock = redis.call('TIME')
  local at = clock[1] .. string.format('%06d', clock[2])
  local hour = math.floor(clock[1] / 3600)
  for _, leg in ipairs({ { source, source_key, -amount }, { destination, destination_key, amount } }) do
    local id, key, change = leg[1], leg[2], leg[3]
    local after = redis.call('HINCRBY', key, 'balance', change)
    redis.call('HINCRBY', key, 'entries', 1)
    redis.call('RPUSH', 'entries:' .. id, at .. ' ' .. request .. ' ' .. change .. ' ' .. after)
    local hour_key = 'hour:' .. id .. ':' .. hour
    redis.call('HINCRBY', hour_key, change < 0 and 'outgoing' or 'incoming', math.abs(change))
    redis.call('HSET', hour_key, 'closing', after)
  end
  redis.call('SET', request_key, 'COMPLETED ' .. at)
  redis.call('INCR', 'transfers')
  return 'COMPLETED ' .. at
end

local function open_accounts(_, args)
  for id = 1, tonumber(args[1]) do redis.call('HSET', 'account:' .. id, 'balance', args[2]) end
  return redis.status_reply('OK')
end

-- The sum of all balances less what was given out, and of all entries less two per transfer.
local function check(_, args)
  local money, entries = 0, 0
  for id = 1, tonumber(args[1]) do
    money = money + redis.call('HGET', 'account:' .. id, 'balance') - args[2]
    entries = entries + redis.call('LLEN', 'entries:' .. id)
  end
  return { money, entries - 2 * (redis.call('GET', 'transfers') or 0) }
end

redis.register_function('transfer', transfer)
redis.register_function('open_accounts', open_accounts)
redis.register_function('check', check)
