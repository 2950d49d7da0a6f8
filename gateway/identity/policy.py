"""
Authorization: a table of rules, and the decision from it; deny by default.

Pure and without I/O. The policy decides before a handler runs and sees of a session
only tenant, owner and ACL, so no refusal can reveal content. A session of another
tenant does not exist for a caller: the answer is word for word that for a missing one.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Literal

from everbus.bus.errors import Forbidden
from everbus.bus.keys import GATEWAY
from everbus.bus.messages import Session
from everbus.gateway.identity.principal import Principal, Role
from everbus.handlers.access_list import admits

# A principal's relation to a session; absent: no such session in its tenant.
Relation = Literal["owner", "member", "stranger", "absent"]
Relations = frozenset[Relation]

# Asked for each command; most ask of the list and the principal of the one before.
_admits = lru_cache(maxsize=64)(admits)
_NOBODY: Relations = frozenset()
# Absent is allowed wherever a role has any rule: the handler then answers
# not_found, which reveals nothing, since nobody can guess a session's id.
_OWN: Relations = frozenset({"owner", "absent"})
_SHARED: Relations = _OWN | {"member"}
_ANYBODY: Relations = _SHARED | {"stranger"}
_EXISTING: Relations = _ANYBODY - {"absent"}

# Kinds without a session find it absent.
_SESSIONLESS: Relations = frozenset({"absent"})

# Work on a session; operators and admins on any.
_WORK: Mapping[Role, Relations] = {
    "user": _SHARED,
    "mad": _SHARED,
    "operator": _ANYBODY,
    "admin": _ANYBODY,
    "gateway": _NOBODY,
}
# Facts that only the gateway's own processes know.
_GATEWAY_ONLY: Mapping[Role, Relations] = {
    "user": _NOBODY,
    "mad": _NOBODY,
    "operator": _NOBODY,
    "admin": _NOBODY,
    "gateway": _ANYBODY,
}
# About the caller's own command; no session is touched.
_OWN_COMMAND: Mapping[Role, Relations] = {
    "user": _ANYBODY,
    "mad": _ANYBODY,
    "operator": _ANYBODY,
    "admin": _ANYBODY,
    "gateway": _NOBODY,
}

RULES: Mapping[str, Mapping[Role, Relations]] = {
    # On an existing session this is `or_get`, a read.
    "session.create": {
        "user": _SHARED,
        "mad": _SHARED,
        "operator": _EXISTING,
        "admin": _ANYBODY,
        "gateway": _NOBODY,
    },
    "session.get": _WORK,
    "session.update": _WORK,
    # May all that `timeline.append` and `session.update` may, and no more.
    "session.turn": _WORK,
    # The gateway deletes by age.
    "session.delete": {
        "user": _OWN,
        "mad": _OWN,
        "operator": _NOBODY,
        "admin": _ANYBODY,
        "gateway": _ANYBODY,
    },
    "session.suspend": _WORK,
    "session.resume": _WORK,
    # States that the cold tier holds the session: only the archiver knows.
    "session.archive": _GATEWAY_ONLY,
    "session.durable": _WORK,
    "session.broadcast": _WORK,
    "session.watch": _WORK,
    "session.at": _WORK,
    "session.diff": _WORK,
    # Lists the visible sessions; for `sees_all` all of the tenant.
    "session.list": {
        "user": _SESSIONLESS,
        "mad": _SESSIONLESS,
        "operator": _SESSIONLESS,
        "admin": _SESSIONLESS,
        "gateway": _NOBODY,
    },
    "session.stats": {
        "user": _NOBODY,
        "mad": _NOBODY,
        "operator": _SESSIONLESS,
        "admin": _SESSIONLESS,
        "gateway": _NOBODY,
    },
    "participant.add": _WORK,
    "participant.remove": _WORK,
    # States that an instance is silent: only the presence lane knows.
    "participant.lost": _GATEWAY_ONLY,
    "instance.lost": _GATEWAY_ONLY,
    "timeline.append": _WORK,
    "timeline.read": _WORK,
    "checkpoint.create": _WORK,
    "checkpoint.list": _WORK,
    "checkpoint.restore": _WORK,
    "request.outcome": _OWN_COMMAND,
    "request.cancel": _OWN_COMMAND,
    "request.settled": _OWN_COMMAND,
}

# Roles that may create a session for another owner.
_CREATORS: frozenset[Role] = frozenset({"mad", "admin"})
# Kinds about the sessions of all tenants: refused to a principal with a tenant.
HOUSE_WIDE = frozenset({"session.stats"})
# Roles that may change the ACL of any session, and find any.
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
    Decides on every command; its rules cover exactly the served kinds.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        """
        Serve *kinds*, which must be exactly the keys of RULES.

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
        Allow the command; True if the principal may change the ACL, too.

        A session of another tenant is allowed like a missing one: the caller must
        continue with the result of `seen`, never with *session*.

        Args:
            mad: the MAD whose ingress the command came on.
            session: the command's session; None if it does not exist.
            new_owner: the owner of the session that `session.create` makes.

        Raises:
            Forbidden: no rule allows it.
        """
        role, name = principal.role, principal.name
        relation = relation_of(principal, session)
        allowed = RULES.get(kind, _NO_RULES).get(role, _NOBODY)
        if relation not in allowed or (principal.tenant and kind in HOUSE_WIDE):
            raise _forbidden(role, kind, _REMEDIES.get(kind, _ASK_OWNER))
        if role == "mad" and name != mad:
            raise _forbidden(role, kind, "use the token of the MAD that publishes")
        if role == "gateway" and mad != GATEWAY:
            raise _forbidden(role, kind, _ASK_OWNER)
        if kind == "session.create" and relation == "absent":
            _check_creation(principal, session, new_owner)

        return relation == "owner" or role in _OVERSEERS

    def seen(self, principal: Principal, session: Session | None) -> Session | None:
        """
        *session*, if it exists for *principal*.
        """
        return None if relation_of(principal, session) == "absent" else session

    def sees_all(self, principal: Principal) -> bool:
        """
        Whether `session.list` shows all sessions of the principal's tenant, not only
        its own and those with it in their ACL.
        """
        return principal.role in _OVERSEERS


def relation_of(principal: Principal, session: Session | None) -> Relation:
    """
    The relation of *principal* to *session*; only the gateway crosses tenants.
    """
    if session is None:
        return "absent"
    if principal.tenant != session.tenant and principal.role != "gateway":
        return "absent"
    if principal.name == session.owner_id:
        return "owner"
    if not session.acl:
        return "stranger"
    is_mad = principal.role == "mad"
    shared = _admits(session.acl, principal.name, is_mad=is_mad)
    return "member" if shared else "stranger"


def _check_creation(
    principal: Principal, session: Session | None, new_owner: str
) -> None:
    role, kind = principal.role, "session.create"
    if new_owner != principal.name and role not in _CREATORS:
        raise _forbidden(role, kind, "name yourself as its user_id")
    if session is not None:
        # Another tenant's session: reveal only that this id is taken.
        raise _forbidden(role, kind, "choose another id")


def _forbidden(role: str, kind: str, remedy: str) -> Forbidden:
    return Forbidden(
        f"role {role} may not {kind[:80]!a} here; {remedy}", role=role, kind=kind[:80]
    )
