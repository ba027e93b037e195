"""Checkpoint to bundle: the exporter of MedVLM-R1. Needs neither torch nor transformers, but for NF4."""
