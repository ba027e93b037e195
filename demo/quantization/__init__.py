"""What every way to quantize costs the demo model and its stress version: the tables of docs/quantization.md."""
