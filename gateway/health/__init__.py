"""
Health of a whole bus, and of one process.
"""
