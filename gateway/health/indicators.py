"""
All indicators of a bus.

The table in the folder's README lists the same names; a test compares the two.
Thresholds suit a bus with default settings; each indicator has its remedy.
"""

from everbus.gateway.health.lane_indicators import LANES
from everbus.gateway.health.node_indicators import NODES
from everbus.gateway.health.quota_indicators import QUOTAS
from everbus.gateway.health.server_indicators import SERVER
from everbus.gateway.health.tier_indicators import TIERS

INDICATORS = (*LANES, *TIERS, *QUOTAS, *NODES, *SERVER)
