"""Image files of more than 8 bits a channel, most of which Pillow reads but does not write."""

import struct
import zlib

import numpy as np

PNG_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of channels


def png_16(values: np.ndarray) -> bytes:
    """Return a PNG of 16 bits a channel of the values (height, width, channels)."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def tiff(data: bytes, shape: tuple[int, int, int], bits: int, **tags: int) -> bytes:
    """Return a TIFF file of a single strip.

    Args:
        data: The pixels as the file contains them.
        shape: The height, width and number of channels.
        bits: The bits of a channel.
        **tags: `compression`, `photometric`, `planes` and `sample_format`: values of these tags;
            and `big_endian`.
    """
    order = ">" if tags.get("big_endian") else "<"
    height, width, channels = shape
    bits_of_channels = struct.pack(f"{order}{channels}H", *[bits] * channels)
    entries = {
        256: width,
        257: height,
        258: 8 + len(data),  # where `bits_of_channels` is
        259: tags.get("compression", 1),
        262: tags.get("photometric", 1 if channels == 1 else 2),
        273: 8,  # where `data` is
        277: channels,
        278: height,
        279: len(data),
        284: tags.get("planes", 1),
        339: tags.get("sample_format", 1),
    }
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in entries.items():
        if tag == 258 and channels == 1:  # a single number of 16 bits is in the directory itself
            directory += struct.pack(f"{order}HHIHH", tag, 3, 1, bits, 0)
        else:
            number_type, count = (3, channels) if tag == 258 else (4, 1)  # 16 or 32 bits
            directory += struct.pack(f"{order}HHII", tag, number_type, count, value)
    begin = {"<": b"II*\0", ">": b"MM\0*"}[order]
    offset = struct.pack(f"{order}I", 8 + len(data) + len(bits_of_channels))
    return begin + offset + data + bits_of_channels + directory + bytes(4)
