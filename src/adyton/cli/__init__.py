"""The `adyton` command: one file a verb."""
