"""The protocol: HTTP/1.1 as bytes, without sockets, processes or configuration."""
