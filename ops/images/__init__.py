"""Bytes to pixels: decoding, resizing and exposure of images."""
