"""Glance (Wang et al., CVPR 2021): compares a patch with the context around it."""
