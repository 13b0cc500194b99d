"""What a report says first, what it says of everything, and what it says of several runs."""

import re

import pytest
from report_pages import edit, multiply, unpack, written
from synthetic import Shape, make_run

from warehouse.catalog import catalog
from warehouse.report import findings

SMALL = Shape(layers=3, messages=2, attention=False, outputs=False, activations=False)


def section(html: str, name: str) -> str:
    """The text of a section, without tags."""
    found = re.search(rf'<section id="{name}".*?</section>', html, re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found[0])) if found else ""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A lake with a run of 200 conversations, and its report."""
    from warehouse.lake.lake import Lake

    lake = Lake(tmp_path_factory.mktemp("many") / "lab")
    multiply(lake, make_run(lake, "many", SMALL), 200)
    return lake, written(lake)


def test_totals_are_over_every_conversation(many):
    lake, html = many
    with catalog.connect(lake) as db:
        read, generated = db.execute(
            "SELECT sum(n_prompt_tokens), sum(n_generated) FROM prompts"
        ).fetchone()
        messages = db.execute("SELECT count(*) FROM messages").fetchone()[0]
        mean = db.execute(
            "SELECT avg(cosine) FROM reply_shift('latest') WHERE site = 'hidden_out'"
        ).fetchone()[0]
    assert (read, generated, messages) == (200 * 12, 200 * 4, 200 * 3)
    facts = re.search(r'<dl class="facts">.*?</dl>', html, re.DOTALL)[0]
    for number in (
        f"{read:,}",
        f"{generated:,}",
        f"{messages:,} messages",
        "200 of 200 replies cut",
        "<bdi>200</bdi>",
    ):
        assert number in facts
    assert "Over all 200 conversations" in html
    assert (
        f"cosine {mean:.3f} before against after the reply, mean over the layers and 200 conversations"
        in section(html, "findings")
    )


def test_tables_and_charts_are_over_every_conversation(many):
    tables = unpack(many[1])
    assert tables["intra"]["rows"] == 200 * 2 * 4 * 3
    assert tables["conversation_shift"]["rows"] == 200 * 3
    assert sum(tables["conversation_counts"]["columns"]["conversations"]) == 200
    overview = re.search(r'<div class="scroll tall">.*?</table>', many[1], re.DOTALL)[0]
    assert overview.count("<tr>") == 201
    assert overview.count('href="#card-') == 120


def test_cards_are_fewer_and_the_page_says_which(many):
    html = many[1]
    assert len(re.findall(r'<details class="run" id="card-', html)) == 120
    head = re.search(r"<header.*?</header>", html, re.DOTALL)[0]
    assert "120 of 200 conversations have a card" in head
    assert (
        "120 of 200 conversations have a card: the first 120, from many · conversation 0 to many · conversation 119"
        in (section(html, "cards"))
    )


def test_the_shift_is_drawn_and_is_that_of_the_analysis(two_runs):
    lake, alpha, _ = two_runs
    columns = unpack(written(lake, alpha))["message_means-0"]["columns"]
    text = {
        name: [columns[name]["values"][code] for code in columns[name]["codes"]]
        for name in ("label", "site")
    }
    drawn = dict(
        zip(
            zip(columns["message_index"], text["label"], text["site"], strict=True),
            columns["hundredths"],
            strict=True,
        )
    )
    with catalog.connect(lake) as db:
        rows = db.execute(
            "SELECT message_index, label, site, shift FROM reference_shift(?)", [alpha]
        ).fetchall()
    assert len(drawn) == len(rows) > 0
    for *key, shift in rows:
        assert drawn[tuple(key)] == pytest.approx(100 * shift, rel=1e-4, abs=1e-9)


def test_the_page_opens_with_what_was_found(lake):
    alpha = make_run(lake)
    html = written(lake, alpha)
    found = section(html, "findings")
    assert html.index('id="findings"') < html.index('id="conversation"')
    figures = re.findall(r'data-chart="(\w+)"', html)
    assert figures[0] == "message_shift"
    with catalog.connect(lake) as db:
        least, layer = db.execute(
            "SELECT least, least_layer FROM reply_summary(?) WHERE site = 'hidden_out'", [alpha]
        ).fetchone()
        peak = db.execute(
            "SELECT peak FROM separating_layers(?) WHERE site = 'hidden_out'", [alpha]
        ).fetchone()[0]
    assert f"It moved most in layer {layer} ({least:.3f})" in found
    assert f"is {peak:.3g} on average" in found
    assert "What this can't tell" in found
    for words in (
        "Every reference stands on one example",
        "The reply was cut",
        "This is one conversation",
    ):
        assert words in found


def test_layers_are_counted_in_which_a_reference_leads_all_others(lake):
    """A margin is over the next reference, the layers are those in which none lies further ahead: not one number."""
    alpha = make_run(lake, shape=SMALL)
    found = section(written(lake, alpha), "findings")
    with catalog.connect(lake) as db:
        rows = db.execute(
            "SELECT margin, layers_led, layers FROM leaning_layers(?)", [alpha]
        ).fetchall()
    counted = re.findall(r"leads in (\d+)(?: to (\d+))? of (\d+) layers", found)
    assert {int(n) for low, high, _ in counted for n in (low, high) if n} <= {
        row[1] for row in rows
    }
    assert counted
    assert {int(layers) for *_, layers in counted} == {row[2] for row in rows}
    assert "ahead in" not in found
    assert "layers build on one another, so this is no test against chance" in found


def test_intervals_are_told_where_labels_have_several_examples(two_runs):
    lake, alpha, _ = two_runs
    with catalog.connect(lake) as db:
        rows = db.execute(
            "SELECT n, margin_low FROM leaning(?, site := 'hidden_out')", [alpha]
        ).fetchall()
    assert any(low is not None for _, low in rows)
    found = section(written(lake, alpha), "findings")
    assert ("with other examples of the labels" in found) or ("might name the other" in found)
    assert "Every reference stands on one example" not in found


@pytest.mark.parametrize(("examples", "only"), [((4, 1, 1), True), ((4, 4, 4), False)])
def test_an_interval_says_where_one_of_the_labels_did_not_vary(lake, examples, only):
    shape = Shape(
        layers=3, messages=4, examples=examples, attention=False, outputs=False, activations=False
    )
    for seed in range(2):  # chance decides which labels come first
        make_run(lake, f"run{seed}", shape, seed=seed)
    with catalog.connect(lake) as db:
        runs = [run_id for (run_id,) in db.execute("SELECT run_id FROM runs").fetchall()]
    found = [section(written(lake, run_id), "findings") for run_id in runs]
    told = [one for one in found if "95% interval" in one]
    assert told
    assert all(("over the examples of one of the two labels only" in one) == only for one in told)


def test_a_preview_that_was_cut_says_so(lake):
    long = "word " * 16
    run_id = make_run(lake, shape=SMALL)
    edit(lake, run_id, "snapshots", preview=["short", long])
    html = written(lake, run_id)
    assert f"{long}…</span>" in html
    assert ">short</span>" in html


def test_a_clear_lead_is_in_most_layers_and_survives_other_examples():
    row = {"layers_led": 20, "layers": 30, "sure": None}
    assert findings.is_clear(row)
    assert not findings.is_clear(row | {"layers_led": 19})
    assert findings.is_clear(row | {"sure": {"margin_low": 0.01}})
    assert not findings.is_clear(row | {"sure": {"margin_low": -0.01}})


@pytest.mark.parametrize(
    ("cosine", "before", "said"),
    [
        (0.9, 0.95, "further"),
        (0.95, 0.9, "less far"),
        (0.95, 0.95, "about as far"),
        (0.9, None, None),
        (1.0, 0.9, None),
    ],
)
def test_moves_are_compared_by_their_distance(cosine, before, said):
    assert findings.further(cosine, before) == said


def test_what_differs_stands_before_any_number(lake):
    for seed, name in enumerate(("warm", "cold", "wild")):
        run_id = make_run(lake, name, SMALL, seed=seed)
        edit(
            lake,
            run_id,
            "messages",
            content=[f"You are a {name} friend.", "Hello", f"reply of {name}"],
        )
    html = written(lake)
    asked = section(html, "differences")
    assert html.index('id="differences"') < html.index('id="findings"')
    assert "differ in 1 of 2 messages: message 0 (system)" in asked
    assert "Hello" not in asked  # the same in all
    assert "You are a <mark>cold</mark> friend." in html


def test_a_wording_without_marks_is_not_taken_for_the_same(lake):
    for seed, text in enumerate(
        ("You are a warm friend.", "You are a cold friend.", "Arr! Sail on")
    ):
        edit(
            lake,
            make_run(lake, f"run{seed}", SMALL, seed=seed),
            "messages",
            content=[text, "Hello", "reply"],
        )
    html = written(lake)
    assert "Arr! Sail on</p>" in html
    assert "a text that has little in common with it has no marks" in section(html, "differences")


def test_settings_that_differ_are_told(lake):
    for seed in (1, 2):
        make_run(lake, f"run{seed}", SMALL, seed=seed)
    asked = section(written(lake), "differences")
    assert "They also differ in seed" in asked
    assert "All 2 runs were asked the same" in asked


def test_marks_are_words_that_differ_and_only_where_most_is_shared():
    assert findings.marks("I am a friend.", "I am a fiend.") == [
        (True, "I am a "),
        (False, "fiend"),
        (True, "."),
    ]
    assert findings.marks("Something else altogether!", "I am a friend.") == [
        (True, "I am a friend.")
    ]
    assert findings.marks("a" * 3000, "b " * 3000) == [(True, "b " * 3000)]


def test_two_runs_are_compared_message_by_message_without_a_matrix(lake):
    for seed, name in enumerate(("a", "b")):
        make_run(lake, name, SMALL, seed=seed)
    html = written(lake)
    charts = set(re.findall(r'data-chart="(\w+)"', html))
    assert "pair_messages" in charts
    assert not {"run_matrix", "pair_rows", "pair_steps"} & charts
    inter = re.search(r'<section id="inter".*?</section>', html, re.DOTALL)[0]
    assert "Over all" not in inter
    assert inter.count('data-chart="message_shift"') == 2
    assert (
        "message_means-1"
        in re.search(r'data-table="message_means-0"[^>]*data-also="([^"]*)"', inter)[1]
    )


def test_a_matrix_appears_from_three_runs_on(pages):
    charts = re.findall(
        r'data-chart="(\w+)"[^>]*data-together="([^"]*)"', pages[1].read_text(encoding="utf-8")
    )
    shared = {chart for chart, together in charts if "state" in together}
    assert {
        "run_matrix",
        "pair_rows",
    } <= shared  # the end of the prompt and that of the reply on one scale


def test_each_state_says_its_token(two_runs):
    lake, alpha, _ = two_runs
    text = section(written(lake, alpha), "intra")
    assert "t11 at position 11, from the chat template" in text  # the last token of the prompt
    assert "t14 at position 14, written by the model the reply was cut here, at 4 tokens" in text
    assert 'class="cut"' in written(lake, alpha)


def test_what_is_usual_is_a_line_and_no_warning(lake):
    run_id = make_run(lake, shape=SMALL)
    path = lake.dataset("metadata", run_id) / "warnings.parquet"
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = "float16 was asked for; on a CPU the model computed in float32"
    rows = [
        {"run_id": run_id, "code": "dtype", "message": message},
        {"run_id": run_id, "code": "other", "message": "odd"},
    ]
    pq.write_table(pa.Table.from_pylist(rows, catalog.metadata_schemas()["warnings"]), path)
    edit(lake, run_id, "warnings")
    html = written(lake)
    assert message in html
    assert [
        re.sub(r"<[^>]+>", "", text)
        for text in re.findall(r'<p class="note warn">(.*?)</p>', html)[:1]
    ] == ["odd"]
