"""Patterns that settings of several groups have."""

LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
HOST = rf"(?=.{{1,253}}\Z){LABEL}(\.{LABEL})*"
ORIGIN = rf"\*|https?://{HOST}(:\d{{1,5}})?"
SECRET_ARN = r"arn:[a-z-]+:secretsmanager:[a-z0-9-]+:\d{12}:secret:\S+-[A-Za-z0-9]{6}"  # noqa: S105 - a pattern
"""With the six characters at its end: IAM compares the complete ARN."""
