"""Changed images to train on: synthetic defects, stains, rotations."""
