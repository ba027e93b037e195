"""Checkpoint to bundle: the exporter of MedVLM-R1. Needs neither torch nor transformers; NF4 alone needs bitsandbytes and torch."""
