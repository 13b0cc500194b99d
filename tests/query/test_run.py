"""`alab sql`: formats, errors that name the next move, hints, and what a terminal sees."""

import csv
import io
import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from warehouse.cli.commands import main
from warehouse.errors import AlabError
from warehouse.query import formats


@pytest.fixture
def alab(two_runs):
    def run(*arguments, **kwargs):
        return CliRunner().invoke(
            main, ["-w", str(two_runs[0].warehouse), "sql", *arguments], **kwargs
        )

    return run


VALUES = "select 1 as a, 'x|y' as b, [1.5, null, 'nan'::float] as c, 'inf'::double as d, null as e, date '2020-01-31' as f"


def test_csv_when_piped(alab):
    result = alab(VALUES)
    assert list(csv.reader(io.StringIO(result.stdout))) == [
        ["a", "b", "c", "d", "e", "f"], ["1", "x|y", "[1.5, null, null]", "inf", "", "2020-01-31"],
    ]  # fmt: skip


def test_json_has_no_nan(alab):
    expected = {"a": 1, "b": "x|y", "c": [1.5, None, None], "d": None, "e": None, "f": "2020-01-31"}
    assert json.loads(alab(VALUES, "--format", "json").stdout) == [expected]
    assert json.loads(alab(VALUES, "--format", "jsonl").stdout) == expected
    assert json.loads(alab("select 1 where false", "--format", "json").stdout) == []
    rows = json.loads(alab("from range(1000)", "--format", "json").stdout)
    assert [row["range"] for row in rows] == list(range(1000))


def test_markdown(alab):
    result = alab("select 'x|y' as b, 2.5 as n", "--format", "md")
    assert result.stdout == "| b | n |\n| --- | --- |\n| x\\|y | 2.5 |\n"


def test_table_is_aligned_and_short(alab):
    lines = alab(
        "select range(2048) as v, 'a\nb' as t, 7 as n", "--format", "table"
    ).stdout.splitlines()
    assert lines[0].split() == ["v", "t", "n"]
    assert lines[2] == "[0, 1, 2, 3, … 2048 values]  a\\nb  7"
    long = alab("from range(1000)", "--format", "table").stdout.splitlines()
    assert len(long) == formats.TABLE_ROWS + 3
    assert "--format csv" in long[-1]


def test_files_take_their_format_from_the_suffix(alab, tmp_path):
    for suffix in ("csv", "json", "jsonl", "md", "parquet"):
        assert alab("select 42 as a", "-o", str(tmp_path / f"out.{suffix}")).exit_code == 0
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [{"a": 42}]
    assert json.loads((tmp_path / "out.json").read_text()) == [{"a": 42}]
    assert (tmp_path / "out.csv").read_text() == "a\n42\n"
    assert alab("select 42", "-o", str(tmp_path / "new" / "out.txt")).exit_code == 0
    assert (tmp_path / "new" / "out.txt").read_text() == "42\n42\n"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_output_is_written_whole_or_not_at_all(alab, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    assert alab("select 42 as a", "-o", str(path)).exit_code == 0
    before = path.read_bytes()
    late = "select case when i = 90000 then error('late') else i end from range(100000) t(i)"
    for query_text in ("select nonsense", late):
        assert alab(query_text, "-o", str(path)).exit_code == 1
        assert path.read_bytes() == before
    for place in (path / "below.csv", tmp_path):
        failed = alab("select 42", "-o", str(place), "--format", suffix)
        assert failed.exit_code != 0
        assert (
            failed.stderr.splitlines()[-1].strip() in ("Name another file with -o.",)
            or "directory" in failed.stderr
        )
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_output_keeps_its_mode_and_its_link(alab, tmp_path):
    path, link = tmp_path / "out.csv", tmp_path / "link.csv"
    path.touch(mode=0o600)
    link.symlink_to(path)
    assert alab("select 42 as a", "-o", str(link)).exit_code == 0
    assert link.is_symlink()
    assert path.read_text() == "a\n42\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_columns_of_one_name_are_told_apart_as_keys(alab):
    assert json.loads(alab("select 1 as a, 2 as a, 3 as a_1", "--format", "json").stdout) == [
        {"a": 1, "a_1": 2, "a_1_1": 3}
    ]


def test_query_from_a_file_or_standard_input(alab, tmp_path):
    path = tmp_path / "q.sql"
    path.write_text(
        "create temp table t as select 3 as a; -- two statements\nselect a + 1 as b from t"
    )
    assert alab("-f", str(path)).stdout == "b\n4\n"
    assert alab("-f", "-", input="select 5 as c").stdout == "c\n5\n"
    assert alab("-- nothing to run;", "--format", "csv").exit_code == 2  # reads as an option
    path.write_text("-- nothing to run")
    assert "no statement" in alab("-f", str(path)).stderr
    assert alab().exit_code == 2


@pytest.mark.parametrize(("sql", "wrong", "next_move"), [
    ("from intra_rum('x')", "intra_rum does not exist", "Did you mean intra_run"),
    ("select cosin([1], [2])", "cosin does not exist", "Did you mean cosine"),
    ("from activation", "activation does not exist", "Did you mean activations"),
    ("select nothing from runs", '"nothing" not found', "Candidate"),
    ("selec 1", "syntax error", "--list"),
    ("create table mine(a int)", "read-only", "only reads"),
    ("select cosine([1, 2], [1, 2, 3])", "different width: 2 and 3", "--list"),
    ("from tensor_of('latest', 'hiden')", "unknown site 'hiden'; the sites are", ""),
])  # fmt: skip
def test_errors_say_what_to_do_next(alab, sql, wrong, next_move):
    result = alab(sql)
    assert result.exit_code == 1
    assert not result.stdout
    assert wrong in result.stderr
    assert next_move in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2


def test_hints_for_queries_without_rows(alab, two_runs):
    _, alpha, beta = two_runs
    for sql in ("from intra_run('nope')", "from intra_run(run_id := 'nope')", "from steps where run_id = 'nope'",
                "from inter_run('latest', 'nope')", "from intra_run(['latest', 'nope'])", "select avg(cosine) from intra_run('nope')"):  # fmt: skip
        result = alab(sql)
        assert result.exit_code == 0
        assert f"hint: there is no run 'nope'; the newest are: {beta}, {alpha}" in result.stderr
    assert (
        f"the newest are: {beta}, {alpha}\n" in alab("from steps where run_id = 'alpha_9'").stderr
    )
    assert (
        "there is no site 'zz'; the sites are: attn_out"
        in alab("from states where site = 'zz'").stderr
    )
    for sql in (f"from steps where run_id = '{alpha}' and step = 3", "from intra_run('latest')", "from intra_run('alpha')",
                "select 1 where 'a' = 'b'"):  # fmt: skip
        assert alab(sql).stderr == ""


def test_list_and_describe(alab):
    rows = list(csv.DictReader(io.StringIO(alab("--list").stdout)))
    assert {"kind": "macro", "name": "cosine", "arguments": "a, b",
            "summary": "Cosine of the angle between two vectors."} in rows  # fmt: skip
    assert {row["kind"] for row in rows} == {"analysis", "macro", "view", "table"}
    assert not [row["name"] for row in rows if row["name"].startswith("_")]
    text = alab("--describe", "intra_run").stdout
    assert text.startswith("intra_run(run_id)  [analysis]\n")
    assert "column jaccard:" in text
    assert "column run_id:" in alab("--describe", "runs").stdout
    wrong = alab("--describe", "intrarun")
    assert wrong.exit_code == 1
    assert "Did you mean intra_run" in wrong.stderr


def test_no_warehouse(tmp_path):
    result = CliRunner().invoke(main, ["-w", str(tmp_path / "none"), "sql", "select 1"])
    assert result.exit_code == 1
    assert "there is no warehouse" in result.stderr


def test_options_of_alab_may_stand_before_and_after_the_command(two_runs, tmp_path):
    folder, elsewhere = str(two_runs[0].warehouse), str(tmp_path / "none")
    for arguments in (
        ["-w", folder, "runs"],
        ["runs", "-w", folder],
        ["-w", elsewhere, "runs", "--warehouse", folder],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0 and len(result.output.splitlines()) == 3, arguments
    assert CliRunner().invoke(main, ["runs", "-w", elsewhere]).exit_code == 1
    for arguments in (["--debug", "-w", elsewhere, "runs"], ["runs", "-w", elsewhere, "--debug"]):
        result = CliRunner().invoke(main, arguments)
        assert isinstance(result.exception, AlabError), "with --debug the exception comes through"


def test_an_empty_warehouse_answers(lake):
    lake.prepare()
    result = CliRunner().invoke(
        main, ["-w", str(lake.warehouse), "sql", "select * from activations"]
    )
    assert result.exit_code == 0
    assert result.stdout.startswith("run_id,prompt_id,step")
    assert "no runs yet" in result.stderr


def test_a_reader_that_leaves_is_no_error(two_runs):
    program = "from warehouse.cli.commands import main; main()"
    command = [
        sys.executable,
        "-c",
        program,
        "-w",
        str(two_runs[0].warehouse),
        "sql",
        "from range(1000000)",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "range\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0


def test_no_heavy_import(two_runs):
    code = (
        "import sys; from warehouse.cli.output import show; from warehouse.lake.lake import Lake; import pathlib;"
        f"show(Lake({str(two_runs[0].warehouse)!r}), 'select 1', fmt='csv', output=pathlib.Path({os.devnull!r}));"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
