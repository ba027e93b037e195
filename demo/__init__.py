"""A model and an image to try everything with, made on the spot."""
