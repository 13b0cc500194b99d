"""The command line where things go wrong: one or two lines on standard error, a status, and no traceback."""

import gc
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result
from synthetic import Shape, make_run

from warehouse.catalog import catalog
from warehouse.cli.commands import main
from warehouse.lake.lake import Lake

ALAB = Path(sys.executable).with_name("alab")
FOREVER = (
    "select count(*) from range(1000000) a, range(1000000) b where hash(a.range, b.range) = 1",
    "select max(cosine(a.vector, b.vector)) from states a, states b, states c, states d, states e",
    "from range(1000000000000)",
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    lake = Lake(tmp_path_factory.mktemp("cli") / "lab")
    for name in ("one", "two"):
        make_run(lake, name, Shape(layers=2, steps=2, messages=3, labels=("joy",)))
    catalog.sync(lake)
    return lake


@pytest.fixture(autouse=True, scope="module")
def loop(lake):
    (lake.warehouse / "loop").symlink_to(lake.warehouse / "pool")
    (lake.warehouse / "pool").symlink_to(lake.warehouse / "loop")


def shell(lake: Lake, command: str) -> subprocess.CompletedProcess:
    """Run alab with arguments and redirections as a shell takes them."""
    return subprocess.run(
        ["bash", "-c", f"{ALAB} -w {lake.warehouse} {command}"], capture_output=True, text=True, check=False,
        cwd=lake.warehouse,
    )  # fmt: skip


def alab(lake: Lake, command: str) -> Result:
    """Run alab in this process, which saves starting one; what ends in a traceback fails here."""
    before = Path.cwd()
    os.chdir(lake.warehouse)
    try:
        done = CliRunner().invoke(main, ["-w", str(lake.warehouse), *shlex.split(command)])
    finally:
        os.chdir(before)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    done.exception = done.exc_info = None
    return done


@pytest.mark.parametrize(("command", "code", "expected"), [
    ("runs > /dev/full", 1, "No space left on device"),
    ("sql 'from range(100000)' > /dev/full", 1, "No space left on device"),
    ("sql 'select 1' --format parquet > /dev/full", 1, "No space left on device"),
    ("sql 'from range(100000)' | head -n 1", 0, ""),
    ("sql 'from range(100000)' --format parquet | head -c 1", 0, ""),
    ("runs >&-", 0, ""),
    ("--help > /dev/full", 1, "No space left on device"),
    ("sql 'select 1 as a' -o /dev/stdout | grep -q a", 0, ""),
    ("sql 'select 1 as a' -o >(cat > /dev/null)", 0, ""),
    ("sql 'select 1 as a' -o loop", 1, "its links go round in a circle"),
    ("rm latest <&-", 1, "Aborted"),
    ("rm latest < /dev/null", 1, "Aborted"),
    ("sql -f <(printf 'select \\xff')", 2, "not text in UTF-8"),
    ("sql $'select \\xff'", 2, "not text in UTF-8"),
    ("sql ';' -o empty.parquet", 0, "no statement that gives rows"),
    ("sql 'select 1' -o /proc/a.csv", 1, "cannot write /proc/a.csv"),
    ("sql 'select 1' -o /proc/a.parquet", 1, "cannot write /proc/a.parquet"),
    ("heatmap latest -o /proc/a", 1, "cannot use /proc/a: No such file or directory"),
    ("export latest -o /proc/a", 1, "No such file or directory"),
    ("export latest --layers 1-0", 2, "'1-0' is no layer or range of them"),
    ("layers ''", 2, "the name of the model is empty"),
])  # fmt: skip
def test_what_the_system_refuses_is_told_in_a_line(lake, command, code, expected):
    done = shell(lake, command)
    assert done.returncode == code
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert lake.run_ids()[0].startswith("one")
    assert not (lake.warehouse / "empty.parquet").exists()


def wait_until_it_asks(process: subprocess.Popen, lake: Lake) -> None:
    """Wait until a process has the catalog open, and a little more."""
    deadline = time.monotonic() + 60
    while str(lake.catalog) not in [file.path for file in psutil.Process(process.pid).open_files()]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.7)


@pytest.mark.parametrize("query", FOREVER)
def test_a_query_can_be_interrupted(lake, tmp_path, query):
    command = [ALAB, "-w", lake.warehouse, "sql", query, "-o", tmp_path / "out.csv"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until_it_asks(process, lake)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            _, told = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert told == "interrupted; nothing unfinished was kept\n"
    assert list(tmp_path.iterdir()) == []


def test_waiting_output_can_be_interrupted(lake):
    command = [ALAB, "-w", lake.warehouse, "sql", "from range(1000000)"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until_it_asks(process, lake)  # the pipe is full
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=20) == 130
        finally:
            process.kill()


HARM = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "random bytes": lambda data: data[:8] + b"\xa5" * 200 + data[208:],
    "gone": None,
}
DATASETS = ("activations", "states", "alab.duckdb")
COMMANDS = (
    "runs", "inspect latest", "sql \"from intra_run('latest')\"", "sql 'select sum(vector[1]) from states'",
    "report -o r.html", "heatmap latest -o h", "export latest -o e --force", "export latest -o f --format parquet",
    "check --deep",
)  # fmt: skip


@pytest.mark.parametrize("harm", [
    name if name in ("cut", "gone") else pytest.param(name, marks=pytest.mark.soak) for name in HARM
])  # fmt: skip
@pytest.mark.parametrize("dataset", DATASETS)
def test_damaged_files_give_no_traceback(lake, tmp_path, dataset, harm):
    hurt = Lake(tmp_path / "lab")
    shutil.copytree(lake.warehouse, hurt.warehouse, symlinks=True)
    assert alab(hurt, "runs").exit_code == 0
    paths = (
        [hurt.catalog]
        if dataset == "alab.duckdb"
        else list((hurt.root / dataset).rglob("*.parquet"))
    )
    for path in paths:
        data = path.read_bytes()
        path.unlink()
        if HARM[harm]:
            path.write_bytes(HARM[harm](data))
    told = [
        (command, done.exit_code, done.stderr)
        for command in COMMANDS
        for done in [alab(hurt, command)]
    ]
    # One of them as its own process too: each command has its turn in one of the twelve cases.
    own = COMMANDS[(4 * list(DATASETS).index(dataset) + list(HARM).index(harm)) % len(COMMANDS)]
    told += [(own, done.returncode, done.stderr) for done in [shell(hurt, own)]]
    for command, code, stderr in told:
        assert "Traceback" not in stderr
        assert code in (0, 1)
        if code and not command.startswith("check"):
            assert stderr.startswith("error: ")
            assert len(stderr.splitlines()) <= 2
            assert "alab check" in stderr or "alab rebuild" in stderr
    if dataset != "alab.duckdb":
        assert alab(hurt, "check --deep").exit_code == 1
    gc.collect()  # frames of errors keep a damaged catalog open, which a process of its own would not
    assert alab(hurt, "rebuild").exit_code == 0
    assert len(alab(hurt, "runs").stdout.splitlines()) == 3
