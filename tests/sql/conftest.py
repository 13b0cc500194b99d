"""A small lake in which runs differ in everything, and its states and tensors as numpy has them."""

import numpy as np
import pytest
from labs import Lab
from synthetic import Shape, make_run

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake

WIDE = Shape(width=128, mlp=160, layers=4)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A connection to a lake with two runs that compare, one of another width, one of other depth, one bare."""
    lake = Lake(tmp_path_factory.mktemp("analyses") / "lab")
    ids = {
        "one": make_run(lake, "one", WIDE, seed=1),
        "two": make_run(lake, "two", WIDE, seed=2),
        "narrow": make_run(lake, "narrow", Shape(width=12, layers=4), seed=3),
        "shallow": make_run(lake, "shallow", Shape(width=128, layers=2), seed=4),
        "bare": make_run(
            lake, "bare", Shape(activations=False, attention=False, outputs=False), seed=5
        ),
        "no_sites": make_run(
            lake, "no_sites", Shape(sites=("hidden_out",), attention=False), seed=6
        ),
    }
    catalog.sync(lake)
    with catalog.connect(lake) as db:
        yield Runs(db, ids)


class Runs(Lab):
    def states(self, run: str) -> dict:
        """(prompt_id, state, index, label, layer, site) to vector."""
        rows = self.rows(f"FROM states_of(${run})")
        keys = ("prompt_id", "state", "state_index", "label", "layer", "site")
        return {tuple(r[k] for k in keys): np.array(r["vector"]) for r in rows}

    def ends(self, run: str) -> dict:
        return {
            (key[1], key[5], key[4]): v
            for key, v in self.states(run).items()
            if key[1] in ("initial", "final")
        }

    def tensors(self, run: str, site: str) -> dict:
        rows = self.rows(f"FROM tensor_of(${run}, '{site}')")
        return {(r["layer"], r["position"]): np.array(r["vector"]) for r in rows}
