"""The command line where things go wrong: one or two lines on standard error, a status, and no traceback."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic import Shape, make_run

from warehouse import catalog
from warehouse.lake import Lake

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


@pytest.mark.parametrize("query", FOREVER)
def test_a_query_can_be_interrupted(lake, tmp_path, query):
    command = [ALAB, "-w", lake.warehouse, "sql", query, "-o", tmp_path / "out.csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(3)
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
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(3)  # the pipe is full
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
COMMANDS = (
    "runs", "inspect latest", "sql \"from intra_run('latest')\"", "sql 'select sum(vector[1]) from states'",
    "report -o r.html", "heatmap latest -o h", "export latest -o e --force", "export latest -o f --format parquet",
    "check --deep",
)  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("dataset", ["activations", "states", "alab.duckdb"])
def test_damaged_files_give_no_traceback(lake, tmp_path, dataset, harm):
    hurt = Lake(tmp_path / "lab")
    shutil.copytree(lake.warehouse, hurt.warehouse, symlinks=True)
    assert shell(hurt, "runs").returncode == 0
    paths = [hurt.catalog] if dataset == "alab.duckdb" else list((hurt.root / dataset).rglob("*.parquet"))
    for path in paths:
        data = path.read_bytes()
        path.unlink()
        if HARM[harm]:
            path.write_bytes(HARM[harm](data))
    for command in COMMANDS:
        done = shell(hurt, command)
        assert "Traceback" not in done.stderr
        assert done.returncode in (0, 1)
        if done.returncode and not command.startswith("check"):
            assert done.stderr.startswith("error: ")
            assert len(done.stderr.splitlines()) <= 2
            assert "alab check" in done.stderr or "alab rebuild" in done.stderr
    if dataset != "alab.duckdb":
        assert shell(hurt, "check --deep").returncode == 1
    assert shell(hurt, "rebuild").returncode == 0
    assert len(shell(hurt, "runs").stdout.splitlines()) == 3
