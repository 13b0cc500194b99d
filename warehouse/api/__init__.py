"""The warehouse from Python: the same answers as the commands, as arrays and relations.

`warehouse.open` gives a `Warehouse`. A method makes one call of a room; nothing is computed here.
Importing this loads no torch.
"""

from warehouse.api.warehouse import Warehouse, open

__all__ = ["Warehouse", "open"]
