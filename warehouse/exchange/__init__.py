"""Exchange: runs go out as arrays and tables, and come in again.

It reads other people's directories without believing them. It never runs a model.
"""
