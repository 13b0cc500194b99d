"""A warehouse, opened: what the commands do, from Python."""

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from warehouse import scenario as scenarios
from warehouse.api.merged import Merged
from warehouse.catalog import removal
from warehouse.cluster.workers import workers
from warehouse.exchange import export, importing
from warehouse.extras import needing
from warehouse.query import formats, inspect

if TYPE_CHECKING:
    from warehouse.serve.service import Service


def open(warehouse: Path | str = "lab") -> "Warehouse":
    """Open a warehouse.

    Args:
        warehouse: its directory; it need not exist before the first capture.

    >>> lab = open("lab")
    >>> lab
    Warehouse('lab'), 2 runs
    """
    return Warehouse(warehouse)


class Warehouse(Merged):
    """A warehouse: runs, their tensors, and SQL over all of them.

    It reads from a private copy of the catalog, renewed when the lake has changed, so that a
    notebook that stays open never keeps a capture or `alab rm` waiting.
    """

    def __init__(self, warehouse: Path | str):
        super().__init__(warehouse)
        self._name = str(warehouse)

    def __repr__(self) -> str:
        count = len(self._lake.run_ids())
        return f"Warehouse({self._name!r}), {count} run{'s' * (count != 1)}"

    def _repr_html_(self) -> str:
        """The runs as an HTML table, for notebooks."""
        if not self._lake.run_ids():
            return f"<p>{html.escape(repr(self))}</p>"
        runs = self.runs()
        return formats.html_table(runs.columns, runs.fetchall())

    def sql(self, text: str, **params: Any) -> duckdb.DuckDBPyRelation:
        """Ask in SQL; `$name` in the query is the parameter `name`.

        It reads a private copy of the catalog, in which only temporary tables and views can be
        created. Else it may do whatever your program may: `COPY … TO` writes a file, which `alab
        sql` refuses.

        Args:
            text: a query over the tables, views, macros and analyses of the warehouse.
            params: values of its parameters.

        Returns:
            A DuckDB relation: it prints itself as a table, and has `fetchall()`, `to_df()` and
            `to_arrow_table()`.

        Raises:
            AlabError: there is no warehouse.
            duckdb.Error: the query does not run.

        >>> later = "SELECT count(*) FROM steps WHERE run_id = $run AND step > $first"
        >>> lab.sql(later, run=run, first=1).fetchall()
        [(2,)]
        """
        return self._connection().sql(text, params=params or None)

    def runs(self) -> duckdb.DuckDBPyRelation:
        """The runs, newest first.

        Columns: run_id, scenario, model_id, prompts, steps, tokens, mb, created_at.

        >>> [row[1] for row in lab.runs().fetchall()]
        ['beta', 'alpha']
        """
        return self.sql("FROM run_overview()")

    def report(
        self,
        *runs: str,
        out: Path | str | None = None,
        csv_dir: Path | str | None = None,
        ray: str | None = None,
    ) -> Path:
        """Write the comparison report of some runs, or of all, as one HTML file.

        Args:
            runs: ids, unique prefixes, patterns with `*`, or `latest`.
            out: the file; `report.html` in the warehouse by default.
            csv_dir: folder for the tables as CSV files.
            ray: address of a Ray that compares the runs with one another, or `local`.

        Returns:
            Path of the HTML file.

        Raises:
            AlabError: there are no runs, a name means none, or a file cannot be written.
        """
        from warehouse.report.write import write_report

        out, csv_dir = Path(out) if out else None, Path(csv_dir) if csv_dir else None
        with workers(ray) as each:
            some = each if ray else None
            return write_report(self._lake, runs, out=out, csv_dir=csv_dir, each=some)[0]

    def capture(
        self,
        scenario: scenarios.Scenario | dict | Path | str,
        *,
        source: Any = None,
        force: bool = False,
        resume: bool = False,
        shard: tuple[int, int] | None = None,
        finish: bool = False,
    ) -> list[str]:
        """Run a scenario and keep every tensor.

        Args:
            scenario: a scenario, the same as plain data, or the path of YAML files.
            source: of a dataset, a table in place of its file: Arrow, pandas or polars.
            force: run although the disk looks too small.
            resume: go on with the newest capture of the dataset that was stopped.
            shard: read a shard of the dataset alone, such as (3, 16).
            finish: publish the dataset whose shards are all there.

        Returns:
            Ids of the new runs; a shard is none.

        Raises:
            AlabError: the scenario is invalid, or cannot be run.
        """
        from warehouse.capture.threads import let_threads_sleep

        let_threads_sleep()  # before torch, which the next line imports
        from warehouse.capture.scenarios import capture
        from warehouse.scenario_files import files_of, read_file

        if isinstance(scenario, Path | str):
            requests = [read_file(path) for path in files_of([scenario])]
        else:
            requests = [scenarios.parse(scenario) if isinstance(scenario, dict) else scenario]
        lakes = [self._lake] * len(requests)
        options: dict[str, Any] = {"source": source, "force": force, "resume": resume}
        return list(capture(requests, lakes, share=shard, finish=finish, **options))

    def inspect(self, run: str = "latest") -> str:
        """Everything about a run but its tensors: what `alab inspect` prints.

        Raises:
            AlabError: there is no such run.

        >>> lab.inspect("beta").splitlines()[1]
        'scenario     beta'
        """
        return _Shown(inspect.inspect(self._lake, run))

    def logit_lens(
        self,
        run: str = "latest",
        *,
        steps: str | None = None,
        position: str = "last",
        top_k: int = 10,
        site: str = "hidden_out",
        model: Any = None,
        tokenizer: Any = None,
    ) -> duckdb.DuckDBPyRelation:
        """What each layer would say next; kept, so that `logit_lens` in SQL has it too.

        Args:
            run: a run id, a unique prefix of one, or `latest`.
            steps: the steps to look at, such as `0-3,7`; None is all.
            position: `last` for the last token of each step, `all`, or positions such as `0-3,7`.
            top_k: most likely tokens to keep.
            site: hidden_out, or contributions for the running sum of what the sub-layers add.
            model: the run's model, where it cannot be loaded by its id; needed once.
            tokenizer: its tokenizer, for the text of the tokens.

        Returns:
            The rows of the site: a token, layer and rank each, with logprob and kl in nats.

        Raises:
            AlabError: no such run, step, position or site, or the model has no logit lens.
        """
        from warehouse.lens import lens

        if model is not None:
            from warehouse.capture.recording import as_loaded

            model = as_loaded(model, tokenizer)
        run_id = lens.logit_lens(
            self._lake, run, steps=steps, position=position, top_k=top_k, site=site, model=model
        )
        return self.sql("FROM logit_lens_of($run) WHERE site = $site", run=run_id, site=site)

    def heatmaps(
        self, run: str, source: str = "attention", *, out: Path | str = "heatmaps", **options: Any
    ) -> list[Path]:
        """Draw a tensor, one PNG per layer and step.

        Args:
            run: a run id, a unique prefix of one, or `latest`.
            source: a site, or attention, embeddings, logits.
            out: directory of the files.
            options: those of `warehouse.report.heatmap.heatmaps`.

        Returns:
            The files.

        Raises:
            AlabError: no such run, source, layer, step or colormap, or a source without heads.

        >>> files = lab.heatmaps(run, "hidden_out", layers="0", steps="0-1", out=folder)
        >>> [path.name for path in files]
        ['layer_00_step_000.png', 'layer_00_step_001.png']
        """
        from warehouse.report.heatmap import heatmaps

        return heatmaps(self._lake, run, source=source, out=Path(out), **options)

    def export(
        self, run: str, out: Path | str | None = None, *, fmt: str = "npz", **options: Any
    ) -> Path:
        """Write a run as arrays or tables for other scripts.

        Args:
            run: a run id, a unique prefix of one, or `latest`.
            out: the directory; None is one named like the run, here.
            fmt: npz, npy, safetensors, parquet or arrow.
            options: sites, layers and steps, such as `layers="0-3"`; `force` to replace an earlier
                export, as `warehouse.exchange.export.export` takes them.

        Returns:
            The directory.

        Raises:
            AlabError: no such run, site, layer or step, or the directory exists.

        >>> found = lab.export(run, folder / "arrays", layers="0", steps="0")
        >>> [path.name for path in sorted(found.iterdir()) if path.is_dir()]
        ['conversation_snapshots', 'examples', 'logit_lens', 'references', 'states', 'tensors']
        """
        return export.export(self._lake, run, Path(out) if out else None, fmt=fmt, **options)

    def import_run(self, directory: Path | str, *, name: str | None = None) -> str:
        """Bring in a directory of arrays, as `export` and hook scripts write them.

        Args:
            directory: the directory.
            name: begin a new run id with this; None keeps the id that the directory names.

        Returns:
            Id of the run.

        Raises:
            AlabError: the directory is damaged or of another layout, or the run is there already.
        """
        return importing.import_run(self._lake, directory, name=name)

    def serve(self, *, port: int = 0) -> "Service":
        """Serve the warehouse's pages from this process, as `alab serve` does.

        Args:
            port: the port; 0 takes a free one.

        Returns:
            The service, running on a thread of its own: it shows its `address`, and has `stop()`.

        Raises:
            AlabError: there is no warehouse, the port is in use, or alab[serve] is not installed.
        """
        with needing("serve", "lab.serve()"):
            from warehouse.serve.service import Service

        service = Service(self._lake, port=port)
        service.start()
        return service

    def remove(self, *runs: str, activations_only: bool = False) -> int:
        """Delete runs for good, without asking.

        Args:
            runs: ids, unique prefixes or `latest`.
            activations_only: delete only the tensors of every token; reports go on working.

        Returns:
            Bytes that were freed.

        Raises:
            AlabError: no such run, or another process uses the catalog; nothing was removed then.
        """
        run_ids = removal.resolve(self._lake, runs)
        return removal.remove(self._lake, run_ids, activations_only=activations_only)


class _Shown(str):
    """Text that a notebook shows as it is."""

    __slots__ = ()
    __repr__ = str.__str__
