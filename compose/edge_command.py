"""
`everbus edge`, apart from what it starts: the other commands need no web framework.
"""


def edge() -> None:
    """
    Serve REST, live updates and health to those who are not on the bus.

    Stops on SIGTERM or Ctrl-C: takes no new request, ends live streams and says where
    to resume, finishes requests under way within EVERBUS_EDGE_DRAIN_S. A second signal
    ends it at once. It speaks plain HTTP: TLS ends at the ingress before it.

    Example: EVERBUS_REDIS_URL=redis://bus:6379 EVERBUS_MONGO_URL=mongodb://db:27017
    EVERBUS_JWT_SECRET_FILE=/run/jwt EVERBUS_EDGE_HOST=0.0.0.0 everbus edge
    """
    # Six MB that only an edge has a use for.
    from compose.edge_role import serve_edge

    serve_edge()
