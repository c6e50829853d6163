"""Normalizing flows, on vectors and on feature maps."""
