"""Dataset sources: annotations and image files in the formats people have."""
