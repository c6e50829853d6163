"""Glance (Wang et al., CVPR 2021): a patch compared with its surroundings."""
