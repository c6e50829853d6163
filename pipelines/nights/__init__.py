"""One night: list the archive, score what is pending, warn, and write the pages."""
