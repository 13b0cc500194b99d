"""The report in headless Chromium: what is drawn, what the switches do, and hostile text."""

import browser
import numpy as np
import pyarrow as pa
import pytest
from report_pages import edit, edit_states, multiply, unpack
from synthetic import Shape, make_run

from warehouse.report.write import write_report

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "{{ 7 * 7 }} \" ' & <b>",
    "right\u202eto left\u2066",
    "a\x00b\x07",
)


@pytest.fixture(scope="module")
def chromium():
    if browser.executable() is None:
        pytest.skip("no Chromium on this machine: install it, or name one in $CHROMIUM")
    with browser.chromium() as running:
        yield running


@pytest.fixture
def open_page(chromium):
    """Opens a report; whatever went wrong there fails the test."""
    tabs = []

    def open_(path, width=1280, **options):
        tabs.append(
            browser.Tab(
                chromium.new_page(viewport={"width": width, "height": 900}, **options), path
            )
        )
        return tabs[-1]

    yield open_
    for tab in tabs:
        problems = tab.problems
        tab.page.close()
        assert not problems


@pytest.mark.browser
@pytest.mark.parametrize(("number", "width", "scheme"), [
    (0, 1280, "light"), *(pytest.param(*rest, marks=pytest.mark.soak) for rest in ((0, 400, "dark"), (1, 1280, "dark"))),
])  # fmt: skip
def test_every_chart_is_drawn_without_complaint(pages, open_page, number, width, scheme):
    tab = open_page(pages[number], width, color_scheme=scheme)
    states = tab.draw_all()
    assert set(states) == {"drawn"}, states
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert (
        tab.page.evaluate(
            "Object.keys(window).filter((name) => /vega|alab|^(report|choices|draw)$/i.test(name))"
        )
        == []
    )


@pytest.mark.browser
@pytest.mark.soak
def test_a_page_of_many_conversations_is_drawn(lake, open_page):
    multiply(
        lake,
        make_run(lake, shape=Shape(messages=2, attention=False, outputs=False, activations=False)),
        16,
    )
    tab = open_page(write_report(lake)[0], 400, color_scheme="dark")
    assert set(tab.draw_all(open_folds=False)) == {"drawn"}
    assert tab.page.locator("figure[data-chart=conversation_counts] svg").count() == 1
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 400


COLOURS = """() => {
  const found = [];
  for (const figure of document.querySelectorAll('figure[data-state=drawn]')) {
    const channels = (part) => [part.encoding?.color, ...(part.layer ?? []).flatMap(channels)].filter(Boolean);
    const spec = figure.result?.embedOptions ? figure.result.spec : null;
    if (!spec) continue;
    for (const {field, type} of channels(spec)) {
      if (type !== 'nominal' || !['label', 'site', 'role', 'state'].includes(field)) continue;
      const scale = figure.result.view.scale('color');
      for (const value of scale.domain()) found.push([field, value, scale(value), figure.dataset.chart]);
    }
  }
  return found;
}"""


@pytest.mark.browser
@pytest.mark.soak
def test_a_site_and_a_label_have_one_colour_in_every_chart(pages, open_page):
    tab = open_page(pages[0])
    tab.draw_all()
    colours, charts = {}, {}
    for field, value, colour, chart in tab.page.evaluate(COLOURS):
        colours.setdefault((field, value), set()).add(colour)
        charts.setdefault(field, set()).add(chart)
    assert all(len(some) == 1 for some in colours.values()), colours
    for field in ("label", "site"):
        own = [colour for (of, _), some in colours.items() if of == field for colour in some]
        assert len(set(own)) == len(own) >= 3, field
    assert {"intra_layers", "layer_line", "residual_norms", "residual_cosines"} <= charts["site"]
    assert {"message_lines", "reference_layers", "fade"} <= charts["label"]


COLUMN_LABELS = """(figure) => {
  const frame = figure.querySelector('svg').getBoundingClientRect();
  const cells = [...figure.querySelectorAll('.mark-rect path')].map((one) => one.getBoundingClientRect());
  return [...figure.querySelectorAll('.role-axis-label text')].filter((one) => one.getAttribute('opacity') !== '0')
    .map((one) => {
      const box = one.getBoundingClientRect();
      const middle = (box.left + box.right) / 2;
      const off = Math.min(...cells.map((cell) => Math.abs((cell.left + cell.right) / 2 - middle)));
      return [one.textContent, box.left >= frame.left - 1 && box.right <= frame.right + 1, off];
    });
}"""


@pytest.mark.browser
@pytest.mark.soak
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("width", [400, 1280])
def test_every_column_has_its_label_whole(lake, open_page, count, width):
    labels = ("anger", "apathy", "calm", "disappointment", "hate", "joy", "love", "sadness")
    run_id = make_run(
        lake, shape=Shape(labels=labels, attention=False, outputs=False, activations=False)
    )
    multiply(lake, run_id, count)
    tab = open_page(write_report(lake)[0], width)
    tab.draw_all(open_folds=False)
    for chart in ("message_shift", "message_reference") if count == 1 else ("conversation_shift",):
        figure = tab.page.locator(f"figure[data-chart={chart}]").first
        shown = {
            text: (whole, off)
            for text, whole, off in figure.evaluate(COLUMN_LABELS)
            if text in labels
        }
        assert set(shown) == set(labels), chart
        assert all(whole for whole, _ in shown.values()), (chart, shown)
        assert all(off < 2 for _, off in shown.values()), (chart, shown)


@pytest.mark.browser
def test_figures_that_are_compared_share_their_scale(pages, open_page):
    tab = open_page(pages[1])
    tab.draw_all(open_folds=False)
    scales = tab.page.evaluate(
        """[...document.querySelectorAll('figure[data-chart=run_matrix]')].map((one) => one.result.view.scale('color').domain())"""
    )
    assert len(scales) == 2
    assert scales[0] == scales[1]
    assert scales[0][0] < scales[0][1]


@pytest.mark.browser
@pytest.mark.soak
def test_the_reply_is_compared_like_with_like_or_at_the_last_tokens(pages, open_page):
    tab = open_page(pages[0])
    chart = tab.page.locator("figure[data-chart=intra_layers]")
    chart.scroll_into_view_if_needed()
    chart.locator("svg").wait_for()
    rows = "document.querySelector('figure[data-chart=intra_layers]').result.view.data('rows').map((r) => r.compared)"
    assert set(tab.page.evaluate(rows)) == {"generation prompt"}
    tab.page.locator("#intra .switch label", has_text="Last token").click()
    tab.wait()
    assert set(tab.page.evaluate(rows)) == {"last token"}


@pytest.mark.browser
@pytest.mark.soak
def test_charts_wait_until_they_are_seen(pages, open_page):
    tab = open_page(pages[0])
    tab.wait()
    assert tab.states()[""] > 10
    fold = tab.page.locator("#intra details").first
    fold.locator("summary").click()
    fold.locator("figure").first.scroll_into_view_if_needed()
    fold.locator("figure[data-state=drawn] svg").first.wait_for(timeout=5000)


@pytest.mark.browser
def test_the_switches_move_the_charts(pages, open_page):
    tab = open_page(pages[0])
    chart = tab.page.locator("figure[data-chart=intra_layers]")
    chart.scroll_into_view_if_needed()
    chart.locator("svg").wait_for()
    before = chart.locator("svg").inner_html()
    tab.page.locator("input[value=mae]").check(force=True)
    tab.wait()
    after = chart.locator("svg").inner_html()
    assert "Cosine similarity" in before
    assert "Mean absolute error" in after
    lines = tab.page.locator("figure[data-chart=reference_layers]").first
    lines.scroll_into_view_if_needed()
    lines.locator("svg").wait_for()
    tab.page.locator("select[data-set=site]").select_option("attn_out")
    tab.wait()
    assert "attn_out" in lines.locator("svg").inner_html()


@pytest.mark.browser
@pytest.mark.soak
def test_the_slider_and_the_tokens_choose_a_step(pages, open_page):
    tab = open_page(pages[0])
    table = tab.page.locator("figure[data-chart=topk]")
    table.scroll_into_view_if_needed()
    table.locator("th.chosen").wait_for()
    assert table.locator("th.chosen").inner_text() == "prefill"
    tab.page.locator("input[data-set=step]").fill("3")
    tab.wait()
    assert table.locator("th.chosen").inner_text() == "pass 3"
    tab.page.locator("figure[data-chart=reply] .token").nth(1).click()
    tab.wait()
    assert table.locator("th.chosen").inner_text() == "pass 1"
    assert tab.page.locator("output[data-of=step]").inner_text() == "pass 1"


@pytest.mark.browser
@pytest.mark.soak
def test_a_figure_shows_the_sql_that_gives_its_rows(pages, open_page):
    import duckdb

    tab = open_page(pages[1])
    tab.page.evaluate(
        "document.querySelectorAll('#card-0, #pair-0').forEach((card) => { card.open = true; })"
    )
    tab.wait()
    shown = tab.page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('figure[data-chart]')].map((figure) => {
          figure.querySelector('.tools button').click();
          return [figure.dataset.chart, figure.querySelector('pre').textContent];
        }))"""
    )
    with duckdb.connect(str(pages[1].parent / "alab.duckdb"), read_only=True) as db:
        for chart, text in shown.items():
            assert db.execute(text).fetchall(), f"{chart}: {text}"


@pytest.mark.browser
@pytest.mark.soak
def test_everything_is_drawn_before_printing(pages, open_page):
    tab = open_page(pages[0], color_scheme="dark")
    tab.page.evaluate("window.print = () => { window.printed = true; }")
    tab.page.locator("#print").click()
    tab.until("window.printed")
    assert set(tab.states()) == {"drawn"}
    tab.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.page.locator("details[data-opened]").count() == 0


@pytest.mark.browser
@pytest.mark.soak
def test_the_browsers_own_print_command_prints_every_chart(pages, open_page):
    tab = open_page(pages[0], color_scheme="dark")
    tab.until("'inflated' in document.documentElement.dataset")
    assert len(tab.page.pdf(format="A4")) > 50_000
    assert set(tab.states()) == {"drawn"}


@pytest.mark.browser
def test_hostile_text_is_only_text(lake, open_page):
    labels = HOSTILE[:3]
    run_id = make_run(lake, shape=Shape(labels=labels))
    edit(lake, run_id, "messages", content=HOSTILE)
    edit(lake, run_id, "snapshots", preview=HOSTILE)
    edit(lake, run_id, "top_tokens", token=HOSTILE)
    edit(lake, run_id, "steps", generated_token=HOSTILE)
    edit(lake, run_id, "prompts", generated_text=HOSTILE)
    tab = open_page(write_report(lake)[0])
    assert set(tab.draw_all()) == {"drawn"}
    assert tab.page.evaluate("window.hacked") is None
    text = tab.page.locator("main").inner_text()
    assert "</script><script>window.hacked = 1</script>" in text
    assert "{{ 7 * 7 }}" in text
    assert "a␀b" in text
    assert "right⟨U+202E⟩to" in text


@pytest.mark.browser
@pytest.mark.soak
def test_broken_numbers_are_gaps_in_a_chart(lake, open_page):
    run_id = make_run(lake, shape=Shape(layers=6))

    def spoil(table):
        vectors = np.array(table["vector"].to_pylist(), "f4")
        layer = np.array(table["layer"])
        vectors[(layer == 1), 0], vectors[(layer == 3), 0], vectors[layer == 4] = np.nan, np.inf, 0
        column = pa.array(list(vectors), table.schema.field("vector").type)
        return table.set_column(
            table.schema.get_field_index("vector"), table.schema.field("vector"), column
        )

    edit_states(lake, run_id, spoil)
    path = write_report(lake)[0]
    assert None in unpack(path.read_text(encoding="utf-8"))["intra"]["columns"]["cosine"]
    tab = open_page(path)
    assert set(tab.draw_all()) == {"drawn", "empty"}
    assert tab.page.locator("figure[data-chart=intra_layers][data-state=drawn]").count() == 1
