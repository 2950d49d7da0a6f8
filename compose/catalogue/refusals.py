"""
Error codes and causes of dead letters.

A paragraph for each: `name: meaning | usual reason | what to do`.
"""

CODES = """
already_exists: An earlier command has created an object with this id. | The id was
chosen twice, or a creation was repeated under another command id. | Read the object,
or take another id; `get_or_create_session` does not mind.

cancelled: The sender cancelled the command in time; it is never applied. | `cancel`. |
Nothing.

defect: The command failed for a fault of everbus; it is in the dead letters. | A
defect; `command.failed` in the managers' log has the traceback. | Report the
traceback; redrive the letter when it is mended.

expired: The command's deadline had passed before it could be applied. | Managers are
behind or were away. | Send it again; see `lag` in everbus doctor.

forbidden: The principal is known, but may not do this. | Its role, the session's ACL,
or rights of the Redis user. | Ask the owner for access; everbus acl shows the rights
on the bus.

invalid: A field is missing, unknown, protected or has an invalid value. | The message
names the field. | Correct that field.

not_found: There is no such object, or no longer. | A wrong id, a deleted session, or
one of another tenant. | Check the id; everbus session list.

overloaded: A queue is at its stated limit. | More is sent than is applied, or Redis is
full. | Slow down and send again; everbus doctor names the queue.

superseded: The managers declared the instance lost, so its commands do not count. |
It was silent for longer than its lease. | Nothing: the SDK joins again by itself.

timeout: No reply came in time; the outcome is unknown. | Managers are behind or away.
| Ask `outcome(command_id)` before you send it again.

too_large: A command, an entry or a session's hot state exceeds its limit in bytes, or a
turn its limit of entries. | Large values in fields or entries, or many entries; the
message has the limit. | Store large values elsewhere, and name them here; take several
turns.

unauthenticated: The token is missing, expired, forged or not for us. | It ran out, or
is of another issuer. | Get a new token; for development: everbus token.

unavailable: A part is away for now; the command is safe to repeat. | Redis, MongoDB,
S3 or all managers are away: the message says which. | Try again with the same command
id; everbus doctor.

version_conflict: The session has another version than expected. | Somebody changed it
meanwhile. | Read the session and decide anew.
"""

CAUSES = """
constraint: MongoDB refused a committed record; the letter may be its only copy. | A
rule or an index of somebody else's on everbus's collections. | Remove that rule; keep
the letter until the record is in MongoDB.

damaged: A command in a spool cannot be read; it was put aside there. | The file was
changed, or the disk fails. | See `commands.doubtful` in the MAD's log.

diverged: MongoDB holds another branch of the session; the letter has the whole record.
| The bus lost writes, or two buses use one MongoDB. | Compare the record with the
session; everbus dead show ID.

expired: The deadline of a command passed before it was read. | Managers were away or
behind. | Its sender decides: it cannot be redriven.

forbidden: A command without reply was not allowed. | The role or the session's ACL. |
Give access, then everbus dead redrive.

invalid: A command without reply has a bad field. | See the letter's message. | Redrive
it with --edit, or drop it.

invalid_id: The id of a command is not one that everbus can keep. | A client of somebody
else's. | Mend that client; drop the letter.

invalid_session: The id of a session is not one that everbus can keep. | A client of
somebody else's. | Mend that client; drop the letter.

newer_schema: A command is of a newer version than the managers. | The MAD was upgraded
first. | Upgrade the managers; its sender sends it again.

no_command: An entry has no field `c`. | Another program writes to the ingress. | Find
out who; drop the letter.

not_found: A command without reply names a session that does not exist. | The session
was deleted, or never created. | Drop it, or create the session and redrive.

poison: Managers failed or died of this command too often, so it was given up. | A
defect of everbus; the letter has each attempt. | Report it; redrive when it is mended.

too_large: An entry exceeds the limit of a command in bytes. | A large body. | Its
sender sends less.

trimmed: Somebody removed the entry before it was settled: only its id is known. | XTRIM
or XDEL on eb:{*}:in:*. | Find who trims; only everbus may.

unauthenticated: A command came without a valid grant. | The token ended, or a client of
somebody else's. | Its sender sends it again with a valid token.

undecodable_record: The producer's record of its numbers cannot be read, so nobody can
tell whether the command was applied. | Somebody wrote to eb:{p}:publishers, or the
bytes are damaged. | everbus doctor names it: put the record back, or restart that MAD.

undecodable_session: The session's hot copy cannot be read, and no other tier has it. |
Somebody wrote to its hash, or the bytes are damaged. | everbus verify --session ID.

undecodable: The bytes are no command, or no record, of everbus. | Another program
writes to the stream, or the bytes are damaged. | Find out who; drop the letter.

unknown_kind: No manager knows the kind of this command. | The MAD is newer than the
managers, or a wrong name. | Upgrade managers and redrive, or redrive --as-kind.

version_conflict: A command without reply expected another version. | Somebody changed
the session meanwhile. | Drop it; its sender decides anew.

wrong_partition: A command came on the stream of another partition. | A client that
computes partitions in another way. | Mend that client; drop the letter.
"""
