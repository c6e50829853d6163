"""Bytes and addresses: files, paths, URIs, Parquet and retries, local or on S3."""
