"""The name server: tells clients which address leads which broker group. Stateless but for its key-value settings.

`route_info.py` is the core, `processor.py` maps request codes to it, `server.py` runs it.
"""
