"""Capture: a scenario, or passes of the caller's own, become a run in the lake.

It plans, hooks, rounds, writes beside the passes, and keeps facts about the run. What cannot be
shown to be right is left out or refused here; nothing here analyses.
"""
