"""
Who asks: tokens, the keys that they are verified with, and grants.
"""
