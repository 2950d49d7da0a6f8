"""
The campaign: random faults on whole stacks under load, judged by `compose.verify`.
"""
