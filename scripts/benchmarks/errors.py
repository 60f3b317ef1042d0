"""The one kind of failure that a report shows instead of figures. Imports nothing."""


class Failed(Exception):
    """A measurement without figures; the text says why."""
