"""Applied once: changes with keys under random faults, and an audit of what was changed."""
