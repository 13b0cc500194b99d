import json

import pytest
from click.testing import CliRunner
from synthetic import Shape, make_run

from warehouse.catalog import catalog
from warehouse.catalog import removal as storage
from warehouse.cli.commands import main
from warehouse.errors import AlabError
from warehouse.query import inspect as summary


def alab(lake, *args: str, **options):
    result = CliRunner().invoke(main, ["-w", str(lake.warehouse), *args], **options)
    return result.exit_code, result.stdout, result.stderr


def test_runs_are_listed_newest_first(two_runs):
    lake, alpha, beta = two_runs
    code, out, _ = alab(lake, "runs", "--format", "jsonl")
    first, second = map(json.loads, out.splitlines())
    assert code == 0
    assert (first["run_id"], second["run_id"]) == (beta, alpha)
    assert (first["prompts"], first["steps"], first["tokens"]) == (1, 4, 16)
    with catalog.connect(lake) as db:
        size = db.execute("SELECT bytes FROM runs WHERE run_id = ?", [beta]).fetchone()[0]
    assert first["mb"] == pytest.approx(size / 1e6, abs=6e-4)


def test_the_page_of_a_run(two_runs):
    lake, alpha, _ = two_runs
    code, out, _ = alab(lake, "inspect", "alpha")
    assert code == 0
    for text in (alpha, "package:synthetic", "SyntheticForCausalLM", "3 layers × 16", "PROMPTS", "reply of alpha",
                 "STEPS", "prefill", "SITES", "mlp_down_out  0-2", "FILES", "attention", "residual"):  # fmt: skip
        assert text in out
    assert "WARNINGS" not in out


def test_the_page_as_json(two_runs):
    lake, alpha, _ = two_runs
    page = json.loads(summary.inspect(lake, alpha, "json"))
    assert page["scenario"] == {"name": "alpha"}
    assert [step["step"] for step in page["steps"]] == [0, 1, 2, 3]
    assert all(step["logprob"] < 0 < step["entropy"] for step in page["steps"])
    # activations and attention per layer, outputs, states, the logit lens, and the metadata tables
    tables = [name for name in catalog.table_names() if name != "files"]
    assert sum(file["files"] for file in page["files"]) == 3 + 3 + 1 + 1 + 1 + len(tables)


def test_sites_tell_layers_apart_and_dropped_data_is_a_warning(lake):
    run_id = make_run(lake, "some", Shape(sites=("hidden_in", "hidden_out"), steps=2))
    catalog.sync(lake)
    page = json.loads(summary.inspect(lake, run_id, "json"))
    assert {s["site"]: (s["layers"], s["reason"]) for s in page["sites"]}["q"] == (
        "0-2",
        "capture flag is off",
    )
    assert page["warnings"] == []
    storage.remove(lake, [run_id], activations_only=True)
    assert "WARNINGS\ndropped: the activations" in summary.inspect(lake, run_id)


def test_du_adds_up(two_runs):
    lake, *_ = two_runs
    rows = json.loads(alab(lake, "du", "--format", "json")[1])
    assert len(rows) == 2
    for row in rows:
        parts = [value for key, value in row.items() if key not in ("run_id", "total")]
        assert sum(parts) == pytest.approx(row["total"], abs=0.004)


def test_rm_asks_first(lake):
    run_id = make_run(lake, "one")
    code, _, err = alab(lake, "rm", "latest", input="n\n")
    assert (code, lake.run_ids()) == (1, [run_id])
    assert run_id in err
    code, out, _ = alab(lake, "rm", "one", "--activations-only", input="y\n")
    assert (code, lake.run_ids()) == (0, [run_id])
    assert out.splitlines()[-1].startswith("freed ")  # click before 8.4 shows the answer there too
    assert alab(lake, "rm", run_id, "-y")[0] == 0
    assert lake.run_ids() == []


def test_rm_takes_a_run_whose_metadata_is_damaged(lake):
    run_id = make_run(lake, "one")
    (lake.dataset("metadata", run_id) / "files.parquet").write_bytes(b"")
    assert alab(lake, "rm", run_id, "-y")[0] == 0
    assert not list(lake.root.glob("[!.]*/run=*"))


def test_check_and_rebuild(lake):
    run_id = make_run(lake, "one")
    catalog.sync(lake)
    assert alab(lake, "check")[::2] == (0, "runs checked: 1, problems: 0\n")
    (lake.dataset("states", run_id) / "part-0.parquet").unlink()
    code, out, err = alab(lake, "check")
    assert (code, err) == (1, "runs checked: 1, problems: 1\n")
    assert out.startswith("missing") and f"states/run={run_id}/part-0.parquet" in out
    assert alab(lake, "check", "--fix")[0] == 1
    assert alab(lake, "rebuild")[:2] == (0, "1 runs registered\n")


def test_unknown_runs_name_what_exists(two_runs):
    lake, alpha, beta = two_runs
    with pytest.raises(AlabError, match=f"the newest are: {beta}, {alpha}"):
        summary.inspect(lake, "gamma")
    with pytest.raises(AlabError, match="there is no run"):
        storage.resolve(lake, ["alpha", "gamma"])
