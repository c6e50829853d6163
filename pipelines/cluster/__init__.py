"""Ray itself, and how to survive it: resources, memory, timeouts, isolation."""
