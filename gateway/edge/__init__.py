"""
The outer door: REST, WebSocket and SSE for those who do not speak Redis Streams.
"""
