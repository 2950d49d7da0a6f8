"""
The OpenAPI description of an edge, without a running one.
"""

import json
from typing import cast

from everbus.bus.client import Mad
from everbus.gateway.edge.app import edge_app
from everbus.gateway.edge.context import EdgeContext, EdgeLimits
from everbus.gateway.edge.fallback import ReadFallback
from everbus.gateway.identity.grants import Grants
from everbus.gateway.identity.tokens import Identity


def openapi_page() -> str:
    """
    What an edge serves at /openapi.json.
    """
    context = EdgeContext(
        # No request is served, so none of these is used.
        bus=cast(Mad, None),
        fallback=ReadFallback(),
        identity=cast(Identity, None),
        grants=cast(Grants, None),
        limits=EdgeLimits(),
        now=float,
    )

    return json.dumps(edge_app(context).openapi(), indent=1, sort_keys=True) + "\n"
