"""
One script a session store: see `tests.bench.peers.store_script`.
"""
