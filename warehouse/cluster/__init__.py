"""The same work on many machines: shards of captures, one query for many runs, sums that merge.

Work is a function and its items: called here one after the other, or as tasks of Ray. What comes
back is small, and merges into what one machine would have computed. There is no server, scheduler
or protocol here, and without Ray everything still works.
"""
