"""
Who is alive: the lane of heartbeats and leases.
"""
