"""Input that nobody meant well by: bytes from disk and wire, extreme messages, floods.

`fuzz` and the modules of targets are about decoders; `siege` and what it is made of are about
running processes.
"""
