"""Backbones and the features that detectors take from them."""
