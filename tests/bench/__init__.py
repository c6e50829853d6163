"""Benchmarks: `make bench` measures time and memory on one thread and prints one table."""
