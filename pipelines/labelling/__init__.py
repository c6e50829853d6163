"""Decisions that files hold: read, resolved to rows of scores, and published."""
