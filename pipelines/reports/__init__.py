"""Evaluation, comparison, drift, alerts and the report page."""
