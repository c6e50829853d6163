"""From an inventory to a verified, published score table."""
