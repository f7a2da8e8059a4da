"""The history of the app's table."""
