"""The warehouse from Python: the same answers as the commands, as arrays and relations."""

import html
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

from warehouse import catalog, query
from warehouse.errors import AlabError
from warehouse.lake import STATE_SITES, Lake

if TYPE_CHECKING:
    import torch

    from warehouse.scenario import Scenario

STATES = ("initial", "final", "snapshot", "reference")

_RUNS = "FROM run_overview()"
_STATES = "SELECT state, state_index, label, vector FROM states_of(?) WHERE site = ? AND layer = ? AND state = ?"
_STATES += " AND coalesce(prompt_id, ?) = ? ORDER BY state_index"


def open(warehouse: Path | str = "lab") -> "Warehouse":
    """Open a warehouse.

    Args:
        warehouse: its directory; it need not exist before the first capture.

    >>> lab = open("lab")
    >>> lab
    Warehouse('lab'), 2 runs
    """
    return Warehouse(warehouse)


class Warehouse:
    """A warehouse: runs, their tensors, and SQL over all of them.

    It reads from a private copy of the catalog, renewed when the lake has changed, so that a notebook that stays
    open never keeps a capture or `alab rm` waiting.

    Args:
        warehouse: its directory.
    """

    def __init__(self, warehouse: Path | str):
        self._name = str(warehouse)
        self._lake = Lake(warehouse)
        self._db: duckdb.DuckDBPyConnection | None = None
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        count = len(self._lake.run_ids())
        return f"Warehouse({self._name!r}), {count} run{'s' * (count != 1)}"

    def _repr_html_(self) -> str:
        """The runs as an HTML table, for notebooks."""
        if not self._lake.run_ids():
            return f"<p>{html.escape(repr(self))}</p>"
        cursor = self._connection().execute(_RUNS)
        head = "".join(f"<th>{html.escape(column[0])}</th>" for column in cursor.description)
        rows = (f"<td>{'</td><td>'.join(html.escape(query.cell(v)) for v in row)}</td>" for row in cursor.fetchall())
        return f"<table><thead><tr>{head}</tr></thead><tbody><tr>{'</tr><tr>'.join(rows)}</tr></tbody></table>"

    def sql(self, text: str, **params: Any) -> duckdb.DuckDBPyRelation:
        """Ask in SQL; `$name` in the query is the parameter `name`.

        Args:
            text: a query over the tables, views, macros and analyses of the warehouse.
            params: values of its parameters.

        Returns:
            A DuckDB relation: it prints itself as a table, and has `fetchall()`, `to_df()` and `to_arrow_table()`.

        Raises:
            AlabError: there is no warehouse.
            duckdb.Error: the query does not run.

        >>> lab.sql("SELECT count(*) FROM steps WHERE run_id = $run AND step > $first", run=run, first=1).fetchall()
        [(2,)]
        """
        return self._connection().sql(text, params=params or None)

    def runs(self) -> duckdb.DuckDBPyRelation:
        """The runs, newest first: run_id, scenario, model_id, prompts, steps, tokens, mb, created_at.

        >>> [row[1] for row in lab.runs().fetchall()]
        ['beta', 'alpha']
        """
        return self.sql(_RUNS)

    def tensor(
        self, run: str, site: str, *, layer: int | None = None, step: int = 0, prompt: int = 0, as_torch: bool = False
    ) -> "np.ndarray | torch.Tensor":
        """One site of one forward pass.

        Args:
            run: a run id, a unique prefix of one, or `latest`.
            site: `hidden_out`, `q`, `mlp_act`, … or `attention`, `embeddings`, `logits`.
            layer: 0-based decoder block; None for embeddings and logits.
            step: 0-based forward pass; 0 is the prefill.
            prompt: 0-based conversation within the run.
            as_torch: give a torch tensor.

        Returns:
            float32, shaped (tokens, width); `attention` is shaped (heads, tokens, keys), 0 for later keys.

        Raises:
            AlabError: no such run, site, layer, step or prompt; the message names those there are.

        >>> lab.tensor("latest", "hidden_out", layer=2).shape
        (12, 16)
        >>> lab.tensor("latest", "attention", layer=0, step=3).shape
        (2, 1, 15)
        >>> lab.tensor("latest", "logits", step=1).dtype
        dtype('float32')
        """
        from warehouse.export import Run, Source, names, numbers

        db = self._connection()
        found = Run(self._lake, catalog.find_run(db, run), db)
        names(site, found.site_names())
        dataset = {"attention": "attention", "embeddings": "outputs", "logits": "outputs"}.get(site, "activations")
        if dataset == "outputs":
            layer = None
        elif layer is None:
            raise AlabError(f"each layer has its own {site}", f"Name one: layer=0 to {found.layers()[-1]}")
        else:
            numbers(str(layer), found.layers(), "layer")
        source = Source(found.files.get((dataset, layer), []))
        column = {"attention": "weights", "mlp_act": "mlp_down_in"}.get(site, site)
        if column not in source.columns:
            raise AlabError(f"{site} was not captured in layer {layer} of this run", "See: alab inspect RUN")
        if (prompt, step) not in source.span:
            there = [s for p, s in sorted(source.span) if p == prompt]
            hint = f"Prompt {prompt} has the steps {there[0]}-{there[-1]}" if there else "See: alab inspect RUN"
            raise AlabError(f"there is no step {step} of prompt {prompt} in this run", hint)
        values = source.tensor(column, (prompt, step))
        values = values if dataset == "attention" else values[0]
        return _as_torch(values) if as_torch else values

    def vector(
        self, run: str, site: str, layer: int, *, state: str = "final", label: str | None = None,
        message: int | None = None, prompt: int = 0, as_torch: bool = False,
    ) -> "np.ndarray | torch.Tensor":  # fmt: skip
        """One last-token state, the kind that comparisons use.

        Args:
            run: a run id, a unique prefix of one, or `latest`.
            site: hidden_in, hidden_out, attn_out or mlp_down_out.
            layer: 0-based decoder block.
            state: initial (the prefill's last token), final (the last decode step's), snapshot or reference.
            label: which reference.
            message: which snapshot: the last message that it has seen.
            prompt: 0-based conversation within the run; references belong to all.
            as_torch: give a torch tensor.

        Returns:
            float32, shaped (width,).

        Raises:
            AlabError: no such run, site, layer, state, label or message; the message names those there are.

        >>> lab.vector("latest", "hidden_out", 2).shape
        (16,)
        >>> lab.vector("latest", "hidden_out", 2, state="reference", label="joy").shape
        (16,)
        >>> lab.vector("latest", "hidden_out", 2, state="snapshot", message=9)
        Traceback (most recent call last):
            ...
        warehouse.errors.AlabError: there is no snapshot 9 in this run
        There are: 0, 1, 2, 3, 4, 5
        """
        for value, known, what in ((site, STATE_SITES, "site"), (state, STATES, "state")):
            if value not in known:
                raise AlabError(f"states have no {what} {value!r}", f"There are: {', '.join(known)}")
        db = self._connection()
        run_id = catalog.find_run(db, run)
        rows = db.execute(_STATES, [run_id, site, layer, state, prompt, prompt]).fetchall()
        if not rows:
            raise AlabError(
                f"this run has no {state} state of {site} in layer {layer}, prompt {prompt}",
                "See: alab inspect RUN",
            )
        asked = {"reference": label, "snapshot": message}.get(state)
        keys = [row[2] if state == "reference" else row[1] for row in rows]
        if state in ("reference", "snapshot"):
            if asked not in keys:
                name = f"{state} {asked!r}" if asked is not None else f"{state} without a name"
                raise AlabError(f"there is no {name} in this run", f"There are: {', '.join(map(str, keys))}")
            rows = [row for row, key in zip(rows, keys, strict=True) if key == asked]
        values = np.array(rows[-1][3], np.float32)
        return _as_torch(values) if as_torch else values

    def report(self, *runs: str, out: Path | str | None = None, csv_dir: Path | str | None = None) -> Path:
        """Write the comparison report of some runs, or of all, as one HTML file.

        Args:
            runs: ids, unique prefixes or `latest`.
            out: the file; `report.html` in the warehouse by default.
            csv_dir: folder for the tables as CSV files.

        Returns:
            Path of the HTML file.

        Raises:
            AlabError: there are no runs, a name means none, or a file cannot be written.
        """
        from warehouse.report import write_report

        out, csv_dir = Path(out) if out else None, Path(csv_dir) if csv_dir else None
        return write_report(self._lake, runs, out=out, csv_dir=csv_dir)[0]

    def capture(self, scenario: "Scenario | dict | Path | str", *, force: bool = False) -> list[str]:
        """Run a scenario and keep every tensor.

        Args:
            scenario: a scenario, the same as plain data, or the path of a YAML file or of a directory of them.
            force: run although the disk looks too small.

        Returns:
            Ids of the new runs.

        Raises:
            AlabError: the scenario is invalid, or cannot be run.
        """
        from warehouse import scenario as scenarios
        from warehouse.capture import capture

        if isinstance(scenario, Path | str):
            found = [scenarios.load(path) for path in scenarios.find([scenario])]
        else:
            found = [scenarios.parse(scenario) if isinstance(scenario, dict) else scenario]
        return list(capture(found, [self._lake] * len(found), force=force))

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own, which threads do not share, to a copy of the catalog as it is now."""
        with self._lock:
            if self._db is None or self._seen != self._lake.versions():
                with catalog.connect(self._lake) as db, tempfile.TemporaryDirectory() as folder:
                    self._seen = catalog.versions(db)
                    copy = shutil.copy(self._lake.catalog, folder)
                    self._db = duckdb.connect(str(copy), read_only=True)
            return catalog.prepare(self._db.cursor(), self._lake)


def _as_torch(values: np.ndarray) -> "torch.Tensor":
    import torch

    return torch.from_numpy(values)
