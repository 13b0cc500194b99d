"""Lets a test that needs just any catalog begin with one that has the SQL library, instead of loading it once more.

Loading costs 0.3 s of processor time, and hundreds of tests begin with a warehouse of their own. What a ready catalog
becomes is the same as what is built from nothing: `test_ready_catalog.py` compares them. The files in `FROM_NOTHING`, and what
other processes do, are without it.
"""

import os
import shutil
from pathlib import Path

import duckdb

from warehouse.catalog import library
from warehouse.catalog.catalog import STORAGE, Catalog
from warehouse.lake.lake import Lake

#: Files whose tests are about how a catalog comes to be.
FROM_NOTHING = ("test_catalog", "test_older_warehouse", "test_ready_catalog")


class Ready:
    """Stands in for `Catalog.open`: a new file that is to be written begins as a copy of a ready one."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._open = Catalog.open

    def __call__(
        self, catalog: Catalog, *, read_only: bool, timeout: float
    ) -> duckdb.DuckDBPyConnection:
        path = catalog.path
        if not read_only and not path.exists() and os.access(path.parent, os.W_OK):
            self._copy_to(catalog)
        return self._open(catalog, read_only=read_only, timeout=timeout)

    def _copy_to(self, catalog: Catalog) -> None:
        ready = Catalog(Lake(self._folder / "ready"))
        if not ready.path.exists():
            ready.lake.prepare()
            with self._open(ready, read_only=False, timeout=0) as db:
                db.begin()
                library.load_library(db, ready.lake, None)
                library.load_index(db, ready.lake)
                db.commit()
        config = {"storage_compatibility_version": STORAGE}
        draft = catalog.path.with_name(f"{catalog.path.name}.ready")
        shutil.copyfile(ready.path, draft)
        with duckdb.connect(
            str(draft), config=config
        ) as db:  # all else that names the lake is renewed by `sync`
            db.execute("UPDATE catalog_info SET lake = ?", [str(catalog.lake.root)])
        os.replace(draft, catalog.path)  # noqa: PTH105  tests of reliability count calls of Path.rename
