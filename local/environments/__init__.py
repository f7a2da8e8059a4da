"""Execution environments: the deployed code in real processes, under AWS's runtime client."""
