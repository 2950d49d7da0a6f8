"""
`everbus bench`: load on a bus through the SDK, and the check of its effects.
"""
