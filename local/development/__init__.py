"""The development loop: watch the project's files, and read all logs as one stream."""
