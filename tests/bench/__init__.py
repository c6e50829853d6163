"""What `make bench` measures: one table in one run, on one thread."""
