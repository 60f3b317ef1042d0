"""Servers behind this one: which of them gets a request, and whether it is well."""
