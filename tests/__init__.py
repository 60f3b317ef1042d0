"""The tests. A package, because a dependency of theirs (httpbin) installs a top-level `tests` of its own."""
