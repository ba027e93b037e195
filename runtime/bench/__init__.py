"""What a benchmark is made of: the machine's limits, counts of work, summaries of measurements, and their picture."""
