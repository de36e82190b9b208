"""Typed headers: the ext fields of a request or response, as values with types. One module per family."""
