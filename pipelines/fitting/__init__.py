"""Fits detectors on good images and calibrates them: from an inventory to a model."""
