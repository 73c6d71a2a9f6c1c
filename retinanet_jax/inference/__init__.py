"""Detection in images of any size, from any source, and its results in files."""
