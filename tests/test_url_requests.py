"""What a warehouse of 1,000 runs in S3 is asked for: few requests, counted at the server."""

import io
import zipfile

import pytest
from synthetic import Shape, make_run
from test_url_commands import alab, lines

from warehouse.catalog import catalog, check
from warehouse.lake.lake import Lake

#: One of the old runs.
ASKED = "old_20200101T000500Z"


@pytest.fixture(scope="module")
def thousand(s3, tmp_path_factory):
    """A lake with 1,000 runs, of which the newest has everything; put there as another tool would copy it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("thousand")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        s3.refuse = lambda method, key: None
        url = s3.bucket("thousand") + "/lab"
        lake = Lake(url)
        run_id = make_run(lake, "alpha", Shape(lens=True, layers=6), seed=1)
        copies = Copies(lake, run_id)
        for number in range(999):
            copies.put(s3.client, f"old_20200101T{number:06d}Z")
        check.repair(lake)
        catalog.sync(lake)
        yield url, run_id


class Copies:
    """Copies of a run under other ids."""

    def __init__(self, lake: Lake, run_id: str):
        self.tables = {path.name: path for path in lake.dataset("metadata", run_id).iterdir()}
        self.run_id = run_id

    def put(self, client, run_id: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from warehouse.lake.manifest import DIGEST, digest

        packed, written = io.BytesIO(), []
        with zipfile.ZipFile(packed, "w") as out:
            for name in ("runs.parquet", "files.parquet"):
                table = pq.read_table(self.tables[name])
                rows = [row | {"run_id": run_id} for row in table.to_pylist()]
                if name == "files.parquet":
                    rows = [row | {"path": row["path"].replace(self.run_id, run_id)} for row in rows
                            if row["dataset"] == "states"] + written  # fmt: skip
                    table = pa.Table.from_pylist(rows, table.schema)
                    table = table.replace_schema_metadata({DIGEST: digest(table.to_pylist())})
                else:
                    rows[0]["created_at"] = rows[0]["created_at"].replace(year=2020)
                    table = pa.Table.from_pylist(rows, table.schema)
                data = io.BytesIO()
                pq.write_table(table, data)
                out.writestr(name, data.getvalue())
                if name == "runs.parquet":
                    import hashlib

                    row = {
                        "run_id": run_id,
                        "dataset": "metadata",
                        "path": f"metadata/run={run_id}/{name}",
                        "n_rows": 1,
                    }
                    written = [
                        row
                        | {
                            "n_bytes": len(data.getvalue()),
                            "sha256": hashlib.sha256(data.getvalue()).hexdigest(),
                        }
                    ]
        client.put_object(
            Bucket="thousand",
            Key=f"lab/lake/metadata/run={run_id}/manifest",
            Body=packed.getvalue(),
        )
        if run_id == ASKED:  # the states of others are not looked at
            path = f"lab/lake/states/run={self.run_id}/part-0.parquet"
            client.copy_object(
                Bucket="thousand",
                Key=path.replace(self.run_id, run_id),
                CopySource={"Bucket": "thousand", "Key": path},
            )


def test_a_question_about_one_of_a_thousand_runs_takes_few_requests(thousand, s3):
    url, _ = thousand
    assert len(Lake(url).run_ids()) == 1000
    for name in ("latest", ASKED):
        with s3.counting() as counts:
            rows = lines(alab(url, f"sql \"select * from intra_run('{name}')\""))
        assert len(rows) == 6 * 4 or name != "latest"
        assert 1 < counts["GET"] <= 12 and counts.keys() == {"GET"}


def test_a_report_of_one_run_takes_few_requests(thousand, s3, tmp_path):
    url, _ = thousand
    with s3.counting() as counts:
        alab(url, f"report latest -o {tmp_path / 'report.html'}")
    assert 1 < counts["GET"] <= 60 and counts.keys() == {"GET"}


def test_a_new_machine_registers_a_run_with_one_request(thousand, s3, tmp_path, monkeypatch):
    url, _ = thousand
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with s3.counting() as counts:
        alab(url, "runs")
    assert counts.keys() == {"GET"} and counts["GET"] <= 1000 + 4
    with s3.counting() as counts:
        alab(url, "runs")
    assert counts.keys() == {"GET"} and counts["GET"] <= 3
