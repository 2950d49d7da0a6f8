"""
The one check for lost, doubled, out of order, forked and unequal.
"""
