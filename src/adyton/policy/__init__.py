"""Is genuine evidence acceptable? Decides, and does no I/O.

A policy (`document`) has rules; a rule is a table of constraints (`constraints`), one for each key of its TEE's schema
(`schema`, `rules`). `appraisal` holds evidence against them: one record if a rule accepts it, else every finding.
"""
