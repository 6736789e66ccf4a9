"""Files in buckets: gs:// and s3://."""
