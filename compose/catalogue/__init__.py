"""
The names that people meet: what each means, its usual reason, and what to do.
"""
