#!lua
--[[
Send a dead letter's command once more, if the letter is still there.

The command goes out and the letter goes away in one step: whatever crashes, and
however many ask at once, a letter is redriven at most once and never lost.

KEYS  1 dead letters  2 the gateway's ingress of the same partition
ARGV  1 entry id of the letter  2 the command
Returns  1, or 0: the letter is gone; somebody redrove or dropped it, or it was
      pushed out by newer ones
Atomicity  one script, one slot.
]]
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then
  return 0
end
redis.call('XADD', KEYS[2], '*', 'c', ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[1])
return 1
