"""The models of the sample API, and its OpenAPI document."""
