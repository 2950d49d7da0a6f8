"""
All indicators of a bus, by the part of the deployment that they judge.

The table in the folder's README lists the same names; a test compares the two.
Thresholds suit a bus with default settings; each indicator has its remedy.
"""

from everbus.gateway.health.lane_indicators import LANES
from everbus.gateway.health.mad_indicators import MADS
from everbus.gateway.health.node_indicators import NODES
from everbus.gateway.health.quota_indicators import QUOTAS
from everbus.gateway.health.server_indicators import SERVER
from everbus.gateway.health.tier_indicators import TIERS
from everbus.gateway.health.verdicts import Indicator

# The one table of parts: an indicator belongs to the part of its tuple.
PARTS: dict[str, tuple[Indicator, ...]] = {
    "bus": (*NODES, *SERVER),
    "managers and lanes": LANES,
    "MADs": (*MADS, *QUOTAS),
    "archiver and tiers": TIERS,
}

INDICATORS = tuple(one for part in PARTS.values() for one in part)
