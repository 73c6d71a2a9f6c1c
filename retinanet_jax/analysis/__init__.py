"""Analysis: what a detector gets wrong on a dataset, in numbers, and what to do about it."""
