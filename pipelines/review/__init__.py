"""A list of parts to look at, their pictures, and what people decide of them."""
