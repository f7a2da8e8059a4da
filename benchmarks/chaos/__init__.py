"""Chaos: faults under a steady load, and an audit of what is there."""
