"""Every row of a run, to compare runs by."""

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake

DATASETS = ("activations", "attention", "outputs", "states")


def everything(lake: Lake, run_id: str, skip: tuple[str, ...] = ()) -> dict[str, list]:
    """Every row of a run, but for the files that hold them."""
    found = {}
    with catalog.connect(lake) as db:
        for name in {*catalog.table_names(), *DATASETS} - {"files", *skip}:
            columns = "* EXCLUDE (run_id, bytes)" if name == "runs" else "* EXCLUDE (run_id)"
            rows = db.execute(f"SELECT {columns} FROM {name} WHERE run_id = ?", [run_id]).fetchall()
            found[name] = sorted(rows, key=repr)
    return found
