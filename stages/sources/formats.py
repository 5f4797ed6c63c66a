"""The formats of pictures that are read: raster formats that Pillow decodes by itself, and HEIC, which phones write."""

import pi_heif
from PIL import AvifImagePlugin

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
"""Pillow's names: none that starts another program or renders a page."""
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jps", ".mpo", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx",
    ".avif", ".avifs", ".heic", ".heics", ".heif", ".hif",
})  # fmt: skip
"""Their file extensions."""

pi_heif.register_heif_opener()
# Pictures are decoded beside the detector, whose threads need the cores.
pi_heif.options.DECODE_THREADS = 1
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
