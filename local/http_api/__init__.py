"""API Gateway's HTTP API, as far as the deployed one uses it."""
