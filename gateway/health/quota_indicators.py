"""
Indicators of bounds: MADs above a quota, and what the server itself bounds.
"""

from everbus.gateway.health.node_indicators import worst_of
from everbus.gateway.health.readings import Readings
from everbus.gateway.health.server_report import ServerReport, weaknesses
from everbus.gateway.health.verdicts import FINE, WARNED, Indicator, Measurement

CLIENT_SETTINGS = {"proto-max-bulk-len", "maxmemory-clients", "timeout"}


def _disabled(readings: Readings) -> Measurement:
    found = readings.disabled
    shown = "; ".join(one.shown for one in found[:10])
    more = f"; and {len(found) - 10} more" if len(found) > 10 else ""

    return Measurement(len(found), f"{shown}{more}" if found else "none")


def _rights(readings: Readings) -> Measurement:
    if readings.unenforced:
        return Measurement(WARNED, readings.unenforced)
    return Measurement(FINE, "managers can disable users")


def _clients(server: ServerReport) -> Measurement:
    found = [one for one in weaknesses(server) if one.setting in CLIENT_SETTINGS]
    if not found:
        known = server.settings.keys() >= CLIENT_SETTINGS
        return Measurement(FINE if known else None, "set" if known else "not known")
    return Measurement(WARNED, "; ".join(f"{one.setting} {one.said}" for one in found))


QUOTAS = (
    Indicator(
        "client_bounds",
        "state",
        "whether the bus bounds what one connection can take of it",
        "CONFIG SET proto-max-bulk-len 32mb, maxmemory-clients 192mb and timeout 600 "
        "(and in redis.conf)",
        worst_of(_clients),
        warn=WARNED,
        wanted="set",
    ),
    Indicator(
        "disabled_mads",
        "",
        "MADs that took more of the bus than their quota, and were disabled",
        "find out why each floods; then everbus mads enable NAME. What the bus had "
        "acknowledged is settled meanwhile",
        _disabled,
        warn=1,
    ),
    Indicator(
        "quota_rights",
        "state",
        "whether managers can disable the user of a MAD that is above its quota",
        "give the managers' user the rights of `everbus acl --role manager`; without "
        "them one MAD can fill the bus",
        _rights,
        warn=WARNED,
        wanted="granted",
    ),
)
