"""A dataset's rows, ids and texts: what is read, and what is refused in one clear error."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from warehouse import scenario
from warehouse.capture.dataset import Dataset
from warehouse.errors import AlabError

ROWS = {"name": ["Ann", "Bob", "Cid"], "age": [31, 42, 53], "town": ["Oslo", "Rome", "Bern"]}


def request(**keys) -> scenario.Dataset:
    keys = {"text": "{{ name }} of {{ town }}"} | keys
    return scenario.parse({"name": "d", "model": {"id": "m"}, "prompt": {"dataset": keys}}).dataset


def dataset(table=None, **keys) -> Dataset:
    return Dataset(request(**keys), pa.table(ROWS) if table is None else table)


def refusal(table=None, **keys) -> str:
    with pytest.raises(AlabError) as error:
        dataset(table, **keys)
    assert error.value.exit_code == 2
    return str(error.value)


WRITERS = {
    "csv": lambda path, rows: path.write_text(
        "name,age,town\n"
        + "".join(f"{a},{b},{c}\n" for a, b, c in zip(*rows.values(), strict=True))
    ),
    "tsv": lambda path, rows: path.write_text(
        "name\tage\ttown\n"
        + "".join(f"{a}\t{b}\t{c}\n" for a, b, c in zip(*rows.values(), strict=True))
    ),
    "json": lambda path, rows: path.write_text(
        json.dumps([dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)])
    ),
    "jsonl": lambda path, rows: path.write_text(
        "\n".join(
            json.dumps(dict(zip(rows, row, strict=True)))
            for row in zip(*rows.values(), strict=True)
        )
    ),
    "parquet": lambda path, rows: pq.write_table(pa.table(rows), path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_files_of_every_kind(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    WRITERS[kind](path, ROWS)
    read = Dataset(request(source=str(path)))
    assert read.labels.to_pydict() == ROWS
    assert read.ids == ["0", "1", "2"]
    assert [filled.texts for filled in read.prompts()] == [
        ("Ann of Oslo",), ("Bob of Rome",), ("Cid of Bern",)
    ]  # fmt: skip


def test_globs_in_the_order_of_their_names(tmp_path):
    for n in (2, 1):
        WRITERS["csv"](tmp_path / f"part-{n}.csv", {k: [v[n]] for k, v in ROWS.items()})
    read = Dataset(request(source=str(tmp_path / "part-*.csv")))
    assert read.labels["name"].to_pylist() == ["Bob", "Cid"]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_of_other_libraries(library):
    frame = pytest.importorskip(library).DataFrame(ROWS)
    assert dataset(frame).labels.to_pydict() == ROWS


def test_a_query_chooses_rows_and_columns():
    read = dataset(
        query="select name, town, age > 40 as old from source where age > 31 order by age desc",
        id="name",
    )
    assert read.ids == ["Cid", "Bob"]
    assert read.labels.column_names == ["name", "town", "old"]


def test_order_is_that_of_the_source_for_many_rows():
    table = pa.table({"name": [str(n) for n in range(300_000)], "town": ["x"] * 300_000})
    read = dataset(table, query="select * from source where name not like '%7'")
    assert read.ids[:3] == ["0", "1", "2"]
    numbers = list(map(int, read.labels["name"].to_pylist()))
    assert numbers == sorted(numbers)


def test_where_fields_stand():
    read = dataset(text="{{ town }}: {{ name }} and {{ name | upper }}, {{ age }}{{ '!' }}")
    filled = next(read.prompts())
    assert filled.texts == ("Oslo: Ann and ANN, 31!",)
    text = filled.texts[0]
    assert {name: text[a:b] for name, (_, a, b) in filled.spans.items()} == {
        "town": "Oslo", "name": "ANN", "age": "31"
    }  # fmt: skip


def test_fields_in_messages():
    read = dataset(
        text=None,
        messages=[
            {"role": "system", "content": "You know {{ town }}."},
            {
                "role": "user",
                "content": "Who is {% if age > 40 %}old {{ name }}{% else %}{{ name }}{% endif %}?",
            },
        ],
    )
    first, second, _ = read.prompts()
    assert first.texts == ("You know Oslo.", "Who is Ann?")
    assert second.texts[1][slice(*second.spans["name"][1:])] == "Bob"
    assert second.spans["town"][0] == 0
    assert second.spans["name"][0] == 1


@pytest.mark.parametrize(
    "value",
    [
        "{{ age }}",
        "{% for x in 'ab' %}x{% endfor %}",
        "{{ ''.__class__ }}",
        "\ue000",
        "\ue000\ue800",
        "</script>",
    ],
)
def test_values_are_data(value):
    read = dataset(pa.table(ROWS | {"name": [value] * 3}))
    filled = next(read.prompts())
    assert filled.texts == (f"{value} of Oslo",)
    if (
        filled.spans
    ):  # marks of the value's own may hide where a field stands, and never say it wrongly
        assert filled.texts[0][slice(*filled.spans["name"][1:])] == value


def test_what_templates_cannot_do():
    for text in ("{{ name.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}"):
        filled = next(dataset(text=text).prompts())
        assert "the template fails" in filled.error
    assert "no template" in refusal(text="{{ name")


def test_rows_that_cannot_be_read_say_why():
    read = dataset(pa.table(ROWS | {"name": ["Ann", None, "Cid"]}))
    assert [filled.error for filled in read.prompts()] == ["", "name is NULL", ""]
    read = dataset(pa.table(ROWS | {"name": ["Ann", " ", ""]}), text="{{ name }}")
    assert [bool(filled.error) for filled in read.prompts()] == [False, True, True]


def test_what_is_refused(tmp_path):
    assert "no file nowhere.csv" in refusal_of_source("nowhere.csv")
    (tmp_path / "a.txt").write_text("x")
    assert "of no kind" in refusal_of_source(str(tmp_path / "a.txt"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing")
    assert "cannot read" in refusal_of_source(str(tmp_path / "b.parquet"))
    assert "query" in refusal(query="select nothing from source")
    assert "query" in refusal(query="selec")
    assert "no rows" in refusal(query="from source where age > 1000")
    assert "query" in refusal(query="create table x (a integer)")
    assert "'town' in row 0 and in row 1" in refusal(
        id="kind", query="select *, 'town' as kind from source"
    )
    assert "NULL in row 2" in refusal(
        id="k", query="select *, nullif(name, 'Cid') as k from source"
    )
    assert "no column 'nick'" in refusal(text="{{ nick }}")
    assert "no column 'nick'" in refusal(id="nick")
    assert "no column 'nick'" in refusal(group="nick")
    assert "nested type" in refusal(query="select *, [age] as ages from source")
    assert "called run_id" in refusal(query="select *, 1 as run_id from source")
    assert "called Prompt_Id" in refusal(query="select *, 1 as Prompt_Id from source")
    with pytest.raises(AlabError, match="no source"):
        Dataset(request())


def refusal_of_source(source: str) -> str:
    with pytest.raises(AlabError) as error:
        Dataset(request(source=source))
    return str(error.value)


@pytest.mark.parametrize(
    "query",
    [
        "from read_text('/etc/hostname')", "from '/etc/passwd'", "copy source to '/tmp/alab-stolen.csv'",
        "install httpfs", "set enable_external_access = true; from source",
        "select * from source where name in (select content from read_text('/etc/hostname'))",
    ],
)  # fmt: skip
def test_a_query_sees_the_source_alone(query):
    assert "prompt.dataset: query" in refusal(query=query)


def test_digest_changes_with_file_and_request(tmp_path):
    path = tmp_path / "rows.csv"
    WRITERS["csv"](path, ROWS)
    one = Dataset(request(source=str(path))).digest
    assert Dataset(request(source=str(path))).digest == one
    assert Dataset(request(source=str(path), group="town")).digest != one
    path.write_text(path.read_text() + "Dan,1,Riga\n")
    assert Dataset(request(source=str(path))).digest != one


def test_scenarios():
    base = {"name": "d", "model": {"id": "m"}}
    dataset = {"dataset": {"source": "x.csv", "text": "{{ a }}"}}
    parsed = scenario.parse(base | {"prompt": dataset})
    assert parsed.generation.max_new_tokens == 0
    assert parsed.capture.positions == ["last"]
    assert not parsed.capture.keeps("attention")
    assert parsed.capture.keeps("hidden_out")
    parsed = scenario.parse(base | {"prompt": dataset, "capture": {"sites": ["mlp_act", "logits"]}})
    assert [s for s in ("mlp_down_in", "logits", "hidden_out") if parsed.capture.keeps(s)] == [
        "mlp_down_in",
        "logits",
    ]
    for wrong, words in (
        ({"prompt": [dataset, dataset]}, "only prompt"),
        ({"prompt": dataset | {"text": "x"}}, "give one of them"),
        ({"prompt": {"dataset": {"source": "x"}}}, "neither messages nor text"),
        ({"prompt": {"text": "x"}, "capture": {"positions": ["last"]}}, "about a dataset"),
        ({"prompt": dataset, "capture": {"sites": ["q"], "mlp": True}}, "leave out one"),
        ({"prompt": dataset, "capture": {"sites": []}}, "empty list"),
        ({"prompt": dataset, "capture": {"sites": ["mood"]}}, "capture.sites"),
        ({"prompt": dataset | {"template": {"x": 1}}}, "about messages"),
    ):
        with pytest.raises(AlabError, match=words):
            scenario.parse(base | wrong)


def test_digest_is_of_the_rows_that_a_query_gives():
    """By chance, say: what is gone on with must be of the same rows."""
    query = "select * from source order by random()"
    table = pa.table({key: values * 100 for key, values in ROWS.items()})
    assert len({dataset(table, query=query).digest for _ in range(3)}) == 3
    assert len({dataset(table, query="from source order by name").digest for _ in range(3)}) == 1
    renamed = table.rename_columns(["name", "years", "town"])
    assert dataset(renamed).digest != dataset(table).digest
    precise = "select *, '2020-01-01 00:00:00.000000001'::timestamp_ns as at from source"
    assert dataset(query=precise).digest != dataset(query=precise.replace("01'", "02'")).digest


def test_names_of_files_are_no_patterns(tmp_path):
    for name, town in (
        ("a[1].csv", "Oslo"),
        ("a1.csv", "Rome"),
        ("b?.csv", "Bern"),
        ("bx.csv", "-"),
    ):
        (tmp_path / name).write_text(f"name,town\nAnn,{town}\n")
    for name, town in (("a[1].csv", "Oslo"), ("b?.csv", "Bern")):
        read = Dataset(request(source=str(tmp_path / name)))
        assert read.labels["town"].to_pylist() == [town]


@pytest.mark.parametrize("source", [".", "/", "x" * 400, "a\0b.csv", "~nobody/x.csv", "**", "a/"])
def test_what_no_file_is_called(source):
    assert "there is no file" in refusal_of_source(source)


def test_a_source_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    WRITERS["csv"](path, ROWS)

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    assert "cannot read" in (text := refusal_of_source(str(path))) and "Permission denied" in text


@pytest.mark.parametrize("content", [b"", b"name,town\n", b"name,town\n\xff\xfe,x\n"])
def test_damaged_tables(tmp_path, content):
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    assert "source:" in refusal_of_source(str(path))


def test_types_that_no_label_has():
    assert "which no label has" in refusal(query="select *, interval 1 day as x from source")
