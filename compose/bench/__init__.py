"""
`everbus bench`: load on a bus through the SDK, and the judgement of what became of it.
"""
