"""A catalog that begins as a copy of a ready one, as most tests' do, is the one that is built from nothing."""

from functools import partialmethod

import duckdb
from ready_catalog import Ready
from synthetic import Shape, make_run

from warehouse.catalog import catalog, library
from warehouse.lake.lake import Lake

EVERYTHING = (
    "FROM catalog_info", "FROM catalog_runs", "FROM runs", "FROM files",
    "SELECT function_name, function_type, description, comment, parameters, macro_definition FROM duckdb_functions() "
    "WHERE NOT internal",
    "SELECT view_name, sql, comment FROM duckdb_views() WHERE NOT internal",
    "SELECT table_name, sql, comment FROM duckdb_tables()",
    "SELECT table_name, column_name, column_index, data_type, comment FROM duckdb_columns() WHERE NOT internal",
)  # fmt: skip


def contents(lake: Lake) -> list[list[tuple]]:
    with duckdb.connect(str(lake.catalog), read_only=True) as db:
        return [sorted(db.execute(query).fetchall(), key=repr) for query in EVERYTHING]


def test_a_ready_catalog_becomes_the_one_that_is_built_from_nothing(lake, tmp_path, monkeypatch):
    make_run(lake, "one", Shape(layers=1, steps=2, messages=2, labels=("joy",)))
    with monkeypatch.context() as patch:
        patch.setattr(catalog.Catalog, "open", partialmethod(ready := Ready(tmp_path)))
        loads = []
        load = library.load_library
        for module in (catalog, library):  # where it is called, here and by the ready one
            patch.setattr(
                module,
                "load_library",
                lambda *arguments: loads.append(arguments) or load(*arguments),
            )
        catalog.sync(lake)
        copied = contents(lake)
        lake.catalog.unlink()
        catalog.sync(lake)
        assert len(loads) == 1  # once for the ready one
        assert contents(lake) == copied
        patch.setattr(catalog.Catalog, "open", ready._open)
        lake.catalog.unlink()
        catalog.sync(lake)
        assert len(loads) == 2
    built = contents(lake)
    assert [len(rows) > 0 for rows in built] == [True] * len(EVERYTHING)
    assert built == copied
