"""What PostgreSQL writes to its log, on AWS and in the local cloud. Pure: no CDK."""

LOG_PARAMETERS = {
    "log_min_duration_statement": "1000",
    "log_lock_waits": "1",
    # No bound values, neither of slow nor of failed statements.
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    # No DETAIL and CONTEXT: they quote keys, whole rows and lines of COPY.
    "log_error_verbosity": "terse",
}
"""Parameters of PostgreSQL 13 and newer. docs/operations.md, "What the logs show of values", lists
the values that a log can still contain; decision 0037 has the reasons."""
