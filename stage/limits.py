"""Limits of AWS and of this project that several settings share."""

LONGEST_CHECKOUT = 20
"""Seconds up to which functions.checkout_timeout can be set."""

TASK_MEMORY = {256: (512, 1024, 2048), 512: (1024, 2048, 4096), 1024: (2048, 4096)}
"""MiB that Fargate combines with the CPU units of a task, of the sizes that can be set here."""
