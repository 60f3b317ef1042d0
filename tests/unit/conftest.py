"""Unit tests: no sockets, no processes. This file also puts their shared fakes (fakes.py) on the import path.
"""
