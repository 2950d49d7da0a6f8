"""
The indicators: what is measured of a bus, and from where on it is not well.

The table in the folder's README lists the same names; a test compares the two.
Thresholds are for a bus of the default settings; the remedy is told with each.
"""

from gateway.health.lanes import LANES
from gateway.health.servers import SERVER
from gateway.health.tiers import TIERS

INDICATORS = (*LANES, *TIERS, *SERVER)
