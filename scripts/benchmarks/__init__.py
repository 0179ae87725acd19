"""What the kit costs in time and memory, measured; run as `python -m scripts.benchmarks.NAME`."""
