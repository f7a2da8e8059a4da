"""API Gateway's HTTP API: the features that the deployed one uses."""
