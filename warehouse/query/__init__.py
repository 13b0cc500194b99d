"""Query: SQL in, columns and rows out, and why there are none.

It binds a query so that it cannot write, explains errors and writes the formats. It never changes
the warehouse.
"""
