"""
everbus beside its peers: `python -m tests.bench.peers`.
"""
