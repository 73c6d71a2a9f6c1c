"""The configs: one file for each run, with every number that it sets."""
