"""Pipelines: scoring, fitting, tables and reports; `nightly` runs one night."""
