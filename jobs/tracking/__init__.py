"""MLflow: one tracked run per job, and registered models as pyfunc."""
