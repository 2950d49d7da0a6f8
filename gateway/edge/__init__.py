"""
The HTTP edge: REST, WebSocket and SSE for clients outside the bus.
"""
