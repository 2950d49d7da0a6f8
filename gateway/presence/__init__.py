"""
Presence of MAD instances: the lane of heartbeats and leases.
"""
