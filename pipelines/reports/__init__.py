"""What people look at: evaluation, comparison, drift, alerts and the report page."""
