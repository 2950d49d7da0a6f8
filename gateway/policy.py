"""
Who may do what: a table, and the decision that reads it; deny by default.

Pure and without I/O. It judges before a handler runs and sees no content of a
session but its tenant, its owner and its ACL, so no refusal can give any content
away. A session of another tenant is not there: whoever asks for it is answered word
for word as if there were none.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from bus.errors import Forbidden
from bus.keys import GATEWAY
from bus.messages import Session
from gateway.identity.principal import Principal, Role

# What a principal is to a session; absent: there is no such session in its tenant.
Relation = Literal["owner", "member", "stranger", "absent"]
Relations = frozenset[Relation]

_NONE: Relations = frozenset()
# Absent is allowed wherever a role has any rule: the handler then says
# not_found, which gives nothing away, for nobody can guess a session's id.
_OWN: Relations = frozenset({"owner", "absent"})
_SHARED: Relations = _OWN | {"member"}
_ANY: Relations = _SHARED | {"stranger"}
_THERE: Relations = _ANY - {"absent"}

# Kinds that are for no session find it absent.
_SESSIONLESS: Relations = frozenset({"absent"})

# Whoever works with a session; operators and admins with any.
_WORK: Mapping[Role, Relations] = {
    "user": _SHARED,
    "mad": _SHARED,
    "operator": _ANY,
    "admin": _ANY,
    "gateway": _NONE,
}
# What only the gateway's own processes find out.
_GATEWAYS: Mapping[Role, Relations] = {
    "user": _NONE,
    "mad": _NONE,
    "operator": _NONE,
    "admin": _NONE,
    "gateway": _ANY,
}
# About a command of the caller's own; no session is touched.
_ONES_OWN: Mapping[Role, Relations] = {
    "user": _ANY,
    "mad": _ANY,
    "operator": _ANY,
    "admin": _ANY,
    "gateway": _NONE,
}

RULES: Mapping[str, Mapping[Role, Relations]] = {
    # On an existing session this is `or_get`, a read.
    "session.create": {
        "user": _SHARED,
        "mad": _SHARED,
        "operator": _THERE,
        "admin": _ANY,
        "gateway": _NONE,
    },
    "session.get": _WORK,
    "session.update": _WORK,
    # The gateway's own: the clean-up by age.
    "session.delete": {
        "user": _OWN,
        "mad": _OWN,
        "operator": _NONE,
        "admin": _ANY,
        "gateway": _ANY,
    },
    "session.suspend": _WORK,
    "session.resume": _WORK,
    # It says that the cold tier holds the session: nobody else can know.
    "session.archive": _GATEWAYS,
    "session.durable": _WORK,
    "session.broadcast": _WORK,
    "session.watch": _WORK,
    "session.at": _WORK,
    "session.diff": _WORK,
    # Of those that the principal may see; `sees_all` says for whom that is any.
    "session.list": {
        "user": _SESSIONLESS,
        "mad": _SESSIONLESS,
        "operator": _SESSIONLESS,
        "admin": _SESSIONLESS,
        "gateway": _NONE,
    },
    "session.stats": {
        "user": _NONE,
        "mad": _NONE,
        "operator": _SESSIONLESS,
        "admin": _SESSIONLESS,
        "gateway": _NONE,
    },
    "participant.add": _WORK,
    "participant.remove": _WORK,
    # It says that an instance was not heard of: nobody else can know.
    "participant.lost": _GATEWAYS,
    "instance.lost": _GATEWAYS,
    "timeline.append": _WORK,
    "timeline.read": _WORK,
    "checkpoint.create": _WORK,
    "checkpoint.list": _WORK,
    "checkpoint.restore": _WORK,
    "request.outcome": _ONES_OWN,
    "request.cancel": _ONES_OWN,
}

# These may create a session that somebody else will own.
_FOUNDERS: frozenset[Role] = frozenset({"mad", "admin"})
# These are about the sessions of all tenants, so whoever belongs to one may not ask.
HOUSE_WIDE = frozenset({"session.stats"})
# These may change the ACL of a session that is not their own, and find any.
_OVERSEERS: frozenset[Role] = frozenset({"operator", "admin"})
_ASK_OWNER = "ask the session's owner or an admin"
_REMEDIES = {
    "session.archive": "ask the archiver: it archives by itself what is idle",
    "participant.lost": "ask for participant.remove",
    "session.stats": "ask an operator or an admin who belongs to no tenant",
}
_NO_RULES: Mapping[Role, Relations] = {}


class Policy:
    """
    Decides on every command; complete over the kinds that it was made for.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        """
        Serve *kinds*, which must be exactly those that RULES has.

        Raises:
            ValueError: naming each kind without a rule and rule without a kind.
        """
        served = frozenset(kinds)
        if served != RULES.keys():
            raise ValueError(
                f"kinds without a rule: {sorted(served - RULES.keys())}; rules "
                f"without a kind: {sorted(RULES.keys() - served)}; mend RULES"
            )

    def allow(
        self,
        principal: Principal,
        kind: str,
        mad: str,
        session: Session | None,
        new_owner: str = "",
    ) -> bool:
        """
        Let the command pass; True if the principal may change the ACL, too.

        It passes for a session of another tenant as for one that is not there: whoever
        goes on must use what `seen` gives, never *session*.

        Args:
            mad: the MAD on whose ingress the command came.
            session: the one it is for, None if there is none.
            new_owner: who is to own the session that `session.create` makes.

        Raises:
            Forbidden: no rule allows it.
        """
        role, name = principal.role, principal.name
        relation = relation_of(principal, session)
        allowed = RULES.get(kind, _NO_RULES).get(role, _NONE)
        if relation not in allowed or (principal.tenant and kind in HOUSE_WIDE):
            raise _denial(role, kind, _REMEDIES.get(kind, _ASK_OWNER))
        if role == "mad" and name != mad:
            raise _denial(role, kind, "use the token of the MAD that publishes")
        if role == "gateway" and mad != GATEWAY:
            raise _denial(role, kind, _ASK_OWNER)
        if kind == "session.create" and relation == "absent":
            _check_founding(principal, session, new_owner)

        return relation == "owner" or role in _OVERSEERS

    def seen(self, principal: Principal, session: Session | None) -> Session | None:
        """
        *session*, if there is one and *principal* may know that there is.
        """
        return None if relation_of(principal, session) == "absent" else session

    def sees_all(self, principal: Principal) -> bool:
        """
        Whether `session.list` shows all sessions of the principal's tenant, not only
        its own and those whose ACL names it.
        """
        return principal.role in _OVERSEERS


def relation_of(principal: Principal, session: Session | None) -> Relation:
    """
    What *principal* is to *session*; only the gateway is of every tenant.
    """
    if session is None:
        return "absent"
    if principal.tenant != session.tenant and principal.role != "gateway":
        return "absent"
    if principal.name == session.owner_id:
        return "owner"
    return "member" if principal.name in session.acl else "stranger"


def _check_founding(
    principal: Principal, session: Session | None, new_owner: str
) -> None:
    role, kind = principal.role, "session.create"
    if new_owner != principal.name and role not in _FOUNDERS:
        raise _denial(role, kind, "name yourself as its user_id")
    if session is not None:
        # Another tenant's: all that may be told is that this id is not to be had.
        raise _denial(role, kind, "choose another id")


def _denial(role: str, kind: str, remedy: str) -> Forbidden:
    return Forbidden(
        f"role {role} may not {kind[:80]!a} here; {remedy}", role=role, kind=kind[:80]
    )
