"""
`everbus edge`, without its imports: the other commands need no web framework.
"""


def edge() -> None:
    """
    Serve REST, live updates and health over HTTP.

    On SIGTERM or Ctrl-C the edge takes no new request, ends live streams with a place
    to resume from, and finishes open requests within EVERBUS_EDGE_DRAIN_S. A second
    signal ends it at once. It serves HTTPS with
    EVERBUS_EDGE_CERT and EVERBUS_EDGE_KEY; else let TLS end at an ingress before it.

    Example: EVERBUS_REDIS_URL=redis://bus:6379 EVERBUS_MONGO_URL=mongodb://db:27017
    EVERBUS_JWT_SECRET_FILE=/run/jwt EVERBUS_EDGE_HOST=0.0.0.0 everbus edge
    """
    # Six MB that only an edge needs.
    from everbus.compose.edge_role import serve_edge

    serve_edge()
