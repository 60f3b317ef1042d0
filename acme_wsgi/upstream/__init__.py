"""Backends: who they are, which of them is chosen, and the connections to them.

Law: importing the room itself imports nothing, because the arbiter and the workers need
each another half of it.
"""
