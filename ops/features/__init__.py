"""Backbones, the features that detectors take from them, and statistics of these features."""
