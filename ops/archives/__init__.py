"""Archives to bytes: listings, the inventory, and the one way to the bytes of an image."""
