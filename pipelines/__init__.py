"""How batches move: Ray Data streams, Ray Train groups, commits."""
