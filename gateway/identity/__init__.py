"""
Authentication and authorization: tokens, keys, grants, policy.
"""
