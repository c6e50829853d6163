"""The detectors, one file each, their contract, and the model folder."""
