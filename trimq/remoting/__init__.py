"""Drivers of the remoting protocol: `server.py` (Trio), `client.py` (AnyIO); real clock and sockets: `system.py`.

The formats are in `trimq.wire`; here bytes are moved, nothing else. Both drivers handle every frame of one read in one
synchronous pass and send whatever has queued up meanwhile with one call: a task or a wake-up per request would cost
more than the whole rest of a request.
"""
