"""Exact distances and nearest neighbours, and the greedy coreset."""
