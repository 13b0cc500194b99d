"""Lens: what each layer would say next, by the final norm and unembedding of the weights that ran.

It takes a model's head once, keeps it in the lake by its fingerprint, and applies it to what a run
has.
"""
