"""Readers of file formats: each gives all bits of a picture, or says why it cannot."""
