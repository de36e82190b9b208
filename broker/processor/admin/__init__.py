"""Requests of operators and their tools, one module per area."""
