"""
The names of what can be sealed, for the settings; light to import.
"""

TIMELINE = "timeline"
# What the setting may name: fields of a session that hold JSON objects, and the
# timeline with the messages of broadcasts.
SEALABLE = ("context_summary", "full_context", "work_in_progress", "fields", TIMELINE)
SENSITIVE = ("context_summary", "full_context", "work_in_progress", TIMELINE)
