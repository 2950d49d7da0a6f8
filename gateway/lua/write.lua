#!lua flags=allow-oom
--[[
Run one small write, also on a server that is out of memory.

For what keeps the gateway itself going: its status, its configuration, a dead letter.
Refused, it would keep away the very part that frees memory again.

KEYS  1 the key
ARGV  1 command, then its arguments behind the key
Returns  the command's reply
Atomicity  one command.
]]
return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
