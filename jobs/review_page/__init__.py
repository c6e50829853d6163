"""The page of jobs.review: its web server, and the files that a browser loads."""
