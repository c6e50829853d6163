"""Bytes and addresses: files, S3, retries, errors, paths, URIs and Parquet."""
