"""Benchmarks of time and memory; run as `python -m scripts.benchmarks.NAME`."""
