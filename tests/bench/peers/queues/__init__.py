"""
One script a peer: see `tests.bench.peers.script`.
"""
