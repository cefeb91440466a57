-- Copies runs of rows into feeds without ever leaving a hole.
--
-- KEYS: the feeds. ARGV: rows to keep in a feed, then for each key: position of the first row, number
-- of rows, 1 if the run may start a feed that is empty, and the rows.
-- Answers for each key the feed's last position afterwards, or
--   -1              EMPTY: the feed holds nothing and the run doesn't start at position 1
--   -2 - position   BEHIND: the feed ends at that position, before the run starts
--
-- Rows that are there already are skipped, so any number of publishers may race and repeat themselves.
-- Redis runs a script without interruption; should it fail half way, what it wrote is a contiguous prefix.
local keep = ARGV[1]
local at = 2
local answers = {}
for number, key in ipairs(KEYS) do
  local first, count, may_start = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), ARGV[at + 2]
  local last = 0
  local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)
  if newest[1] then
    last = tonumber(string.match(newest[1][1], '^%d+'))
  end
  if last == 0 and first > 1 and may_start == '0' then
    answers[number] = -1
  elseif last > 0 and first > last + 1 then
    answers[number] = -2 - last
  else
    for index = math.max(1, last - first + 2), count do
      redis.call('XADD', key, string.format('%.0f-0', first + index - 1), 'r', ARGV[at + 2 + index])
    end
    redis.call('XTRIM', key, 'MAXLEN', '~', keep)
    answers[number] = math.max(last, first + count - 1)
  end
  at = at + 3 + count
end
return answers
