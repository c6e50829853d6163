"""The tables and records of an output folder, queried with DuckDB."""
