"""A Django app for the tests of the backend."""
