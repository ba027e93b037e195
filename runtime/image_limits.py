"""How large an image may be."""

MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 2**30
