"""What the layer costs: a warm lookup, and a cold start to its first row."""
