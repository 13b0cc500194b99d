"""What a worker does for the page of a dataset: its vectors in two dimensions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from warehouse.catalog.runs import find_run
from warehouse.exchange import matrix
from warehouse.report import projection
from warehouse.serve.tasks import FORMS, Desk, query_text

#: Rows that are drawn at the most; so many where an eigenvalue problem of all would take long.
POINTS, FEWER = 20_000, 2_000
#: Rows and dimensions both beyond which that is so.
LARGE = 1_500


def plane(
    desk: Desk, run: str, site: str, layer: int, selector: str, label: str | None, form: str
) -> bytes:
    """The vectors of a dataset's rows along the two directions in which they differ most.

    Of several positions of a row the last; `label` is the column whose values stand beside them, or
    None.

    Returns:
        A row for each point: `prompt_id`, `pc1`, `pc2`, `label` as text. As `columns` (other forms
        are `json`, `csv` and `parquet`) also
        `shares`, the part of the variance that each direction has, and `all`, the rows there are.
    """
    run = find_run(desk.db, run)
    vectors = matrix.find_vectors(desk.lake, desk.db, run, site, layer, selector)
    last = np.flatnonzero(np.r_[np.diff(vectors.prompts) != 0, True])
    most = FEWER if min(len(last), vectors.width) > LARGE else POINTS
    rows = last[projection.sample(len(last), most)]
    prompts = vectors.prompts[rows]
    points, shares = projection.principal(vectors.read(0, len(vectors))[rows])
    columns = {"prompt_id": pa.array(prompts, pa.int32())}
    columns |= {f"pc{axis + 1}": pa.array(points[:, axis]) for axis in (0, 1)}
    columns["label"] = _labels(desk, run, label, prompts)
    values = {"run": run, "site": site, "layer": layer, "selector": selector, "label": label}
    about: dict[str, Any] = {"query": query_text("dataset_plane"), "values": values}
    return FORMS[form](pa.table(columns), about | {"shares": shares, "all": len(last)})


def _labels(desk: Desk, run: str, label: str | None, prompts: np.ndarray) -> pa.Array:
    """The values of a column for some rows, as text."""
    if label is None:
        return pa.nulls(len(prompts), pa.string())
    rows = desk.ask(query_text("dataset_labels"), {"run": run, "label": label})
    labels = dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))
    return pa.array([labels.get(prompt) for prompt in prompts.tolist()], pa.string())


#: What a request may ask for, beside `tasks.TASKS`.
TASKS: dict[str, Callable[..., bytes]] = {"plane": plane}
