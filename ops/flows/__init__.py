"""Normalizing flows on vectors, on single positions of feature maps, and on whole feature maps."""
