"""Commands: one file each, flags and then one call."""
