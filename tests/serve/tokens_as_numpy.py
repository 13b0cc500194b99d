"""What a run of random numbers holds, as numpy reads it from its files."""

from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq

from warehouse.lake.lake import Lake
from warehouse.serve.service import Service


class Data:
    """The data of a server's pages, as a script asks for them."""

    def __init__(self, service: Service):
        self.client = httpx.Client(
            base_url=service.address.partition("/?")[0], follow_redirects=True, timeout=40
        )
        self.client.get(service.address)

    def ask(self, name: str, **values) -> list[dict]:
        """The rows of a query."""
        answer = self.client.get(f"/data/{name}.json", params=values)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def column(self, query: str, field: str = "value", **values) -> list:
        """One column of the rows of a query."""
        return [row[field] for row in self.ask(query, **values)]


def stored(lake: Lake, run_id: str, dataset: str, column: str, layer: int | None = None) -> dict:
    """One column of a dataset in all files of a run, by position; by head and position for weights."""
    folder = "*" if layer is None else f"*/layer={layer:02d}"
    values = {}
    for path in sorted(Path(lake.root, dataset, f"run={run_id}").glob(f"{folder}/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            at = (row["head"], row["position"]) if "head" in row else row["position"]
            values[at] = np.array(row[column], "f8")
    return values


def vectors(lake: Lake, run_id: str, site: str, layer: int) -> np.ndarray:
    """A site of one layer, (tokens, width)."""
    values = stored(lake, run_id, "activations", site, layer)
    return np.array([values[position] for position in sorted(values)])


def reference(lake: Lake, run_id: str, label: str, site: str, layer: int) -> np.ndarray:
    """The state of a reference."""
    (path,) = Path(lake.root, "states", f"run={run_id}").glob("*.parquet")
    (found,) = [
        row["vector"]
        for row in pq.read_table(path).to_pylist()
        if row["state"] == "reference"
        and (row["label"], row["site"], row["layer"]) == (label, site, layer)
    ]
    return np.array(found, "f8")


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Of (tokens, vocabulary) scores."""
    top = logits.max(1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
