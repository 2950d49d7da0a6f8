"""
Migration from a MAD-owned store: backfill, dual write, comparison, cut-over.
"""
