"""The storm: many environments, each with its first request, at the same moment."""
