"""The recipes: every number of a run lives in one of these files."""
