"""Synthetic scans: anatomy drawn as shapes, seeded, with findings that can be present or absent."""
