"""The supervisor of PgBouncer: process 1 of the pooler's image, and the pooler of local mode.

It runs on Python's standard library and boto3 alone, both as Debian packages in the image.
"""
