"""Models: loading one with a report of its weights, and what numbers show of it.

It renders chats, probes where every site is, reads sequences through a cache that goes back, and
samples. It never imports the lake: what becomes of a tensor is not its business.
"""
