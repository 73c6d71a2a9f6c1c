"""Scaling the pixels of images of more than 8 bits a channel to 0..255."""

# "type", "image", or the values that become 0 and 255.
ValueRange = str | tuple[float, float]
