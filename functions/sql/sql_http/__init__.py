"""PostgreSQL over HTTP, by the protocol that Neon's serverless driver speaks."""
