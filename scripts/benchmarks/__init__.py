"""ACME and its peers, measured side by side on this machine: the package behind `scripts/bench`.

The law of this package: it knows ACME only through its command, a conf.d directory and its control socket, as
it knows every other peer; nothing here imports `acme_wsgi`, and no peer gets a setting that
another is denied.
Sizes are bytes, times are seconds unless a name says otherwise (`_us`, `_ms`).
"""
