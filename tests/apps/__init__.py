"""WSGI applications that tests serve."""
