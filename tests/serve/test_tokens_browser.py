"""The pages of tokens and of the search in a real browser."""

import pytest
from browser import executable
from pages_in_browser import LOOKS, WIDTHS, Visit, served
from synthetic import Shape, make_run
from synthetic_dataset import make_dataset
from test_search import HOSTILE, with_words

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium on the path"),
]
LONG = 4200
TONES = """[...document.querySelectorAll('#conversation [role="option"]')].slice(0, 30)
  .map((one) => [one.style.getPropertyValue('--share'), one.classList.contains('low')])"""


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A conversation, one of hostile words, one of thousands of tokens, and a dataset."""
    lake = Lake(tmp_path_factory.mktemp("pages") / "lab")
    shape = Shape(width=12, mlp=20, lens=True)
    make_dataset(lake, rows=20)
    make_run(lake, "long", Shape(layers=1, messages=20, prompt_tokens=LONG - 4, attention=False,
                                 outputs=False, sites=("hidden_out",)))  # fmt: skip
    with pytest.MonkeyPatch.context() as monkeypatch:
        with_words(monkeypatch)
        make_run(lake, "words", shape)
    make_run(lake, "talk", shape, seed=3)
    catalog.sync(lake)
    return lake


@pytest.fixture(scope="module")
def service(lake):
    with served(lake) as service:
        yield service


@pytest.fixture
def visit(browser, service):
    visit = Visit(browser, service)
    visit.pending = set()
    visit.page.on("request", lambda request: visit.pending.add(request))
    for event in ("requestfinished", "requestfailed"):
        visit.page.on(event, lambda request: visit.pending.discard(request))
    yield visit
    assert visit.problems == []
    visit.page.close()


def text(visit, selector: str) -> str:
    return visit.page.locator(selector).inner_text()


def locked(visit) -> list[int]:
    """Positions that are locked, as the list says."""
    return visit.page.evaluate(
        """[...document.querySelectorAll('#conversation [aria-selected="true"]')].map((one) => one.position)"""
    )


def settle(visit) -> None:
    """Wait until nothing was asked of the server for a while."""
    quiet = 0
    while quiet < 4:
        visit.page.wait_for_timeout(30)
        quiet = 0 if visit.pending else quiet + 1


@LOOKS
@pytest.mark.parametrize(
    "path",
    [
        "/run/latest:talk/tokens",
        "/run/latest:words/tokens?position=3&colour=reference&head=1",
        "/run/latest:set/tokens?prompt=2&colour=label",
        "/search?q=hello",
        "/search?run=latest:talk&prompt=0&position=3&layer=1&site=hidden_out",
        "/search?run=latest:talk&position=3&site=bogus",
    ],
)
def test_a_page_is_whole(browser, service, path, width, dark):
    visit = Visit(browser, service, width=width, dark=dark).open(path)
    states = visit.draw()
    assert states.get("drawn") and not states.get("failed") and not visit.overflows()
    assert visit.problems == []
    if width == WIDTHS[1]:
        assert visit.findings() == []
    visit.page.close()


def test_pointing_previews_and_clicking_locks(visit):
    visit.open("/run/latest:talk/tokens")
    visit.page.hover("#token-5")
    assert "t5" in text(visit, "#preview") and "position 5" in text(visit, "#preview")
    assert "length" in text(visit, "#preview") and not visit.page.is_visible("#locked")
    visit.page.click("#token-5")
    settle(visit)
    assert locked(visit) == [5] and "position=5" in visit.page.url
    assert visit.draw() == {"drawn": 5, "empty": 1}  # the lens is of the last tokens
    assert "alab logit-lens talk_" in text(visit, "#locked")
    visit.page.hover("#token-7")
    assert "t7" in text(visit, "#preview") and locked(visit) == [5]
    visit.page.keyboard.press("Escape")
    assert locked(visit) == [] and "position" not in visit.page.url
    assert not visit.page.is_visible("#locked")


def test_arrows_move_token_and_layer(visit):
    visit.open("/run/latest:talk/tokens?position=5")
    before = visit.page.evaluate(TONES)
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowUp"):
        visit.page.keyboard.press(key)
    settle(visit)
    assert locked(visit) == [6] and "layer=2" in visit.page.url and "position=6" in visit.page.url
    assert "layer 2" in text(visit, "#colour-title") and visit.page.evaluate(TONES) != before
    visit.page.keyboard.press("]")
    settle(visit)
    assert "head=1" in visit.page.url
    assert visit.page.locator(".arcs path").count() > 2


def test_the_address_is_what_is_seen(visit):
    path = "/run/latest:talk/tokens?position=4&layer=2&site=mlp_up&colour=neuron&neuron=13&head=1"
    visit.open(path)
    assert (
        locked(visit) == [4] and text(visit, "#colour-title") == "Dimension 13 of mlp_up, layer 2"
    )
    assert visit.page.input_value('[data-set="head"]') == "1"
    before = visit.page.evaluate(TONES)
    visit.page.reload()
    settle(visit)
    assert visit.page.evaluate(TONES) == before


@pytest.mark.parametrize(
    ("colour", "title"),
    [
        ("norm", "Length of hidden_out, layer 1"),
        ("surprise", "Surprise"),
        ("entropy", "Entropy of what follows"),
        ("cosine", "Cosine with the locked token, hidden_out, layer 1"),
        ("neuron", "Dimension 0 of hidden_out, layer 1"),
        ("reference", "From fear to joy: hidden_out, layer 1"),
        ("label", "to joy"),
    ],
)
def test_every_colour_has_a_legend_with_numbers(visit, colour, title):
    visit.open("/run/latest:talk/tokens?position=4&label_column=mood&high_value=joy")
    visit.page.select_option('[data-set="colour"]', colour)
    settle(visit)
    assert title in text(visit, "#colour-title") and any(map(str.isdigit, text(visit, ".legend")))
    tones = visit.page.evaluate(TONES)
    assert len({share for share, _ in tones}) > 3
    assert any(low for _, low in tones) == (colour in ("cosine", "neuron", "reference", "label"))


def test_a_held_scale_stays_over_layers(visit):
    visit.open("/run/latest:talk/tokens")
    ends = text(visit, ".legend").splitlines()[:3]
    visit.page.check("#hold")
    visit.page.keyboard.press("ArrowUp")
    settle(visit)
    assert text(visit, ".legend").splitlines()[:3] == ends
    assert "the scale is held" in text(visit, ".legend") and "low=" in visit.page.url


def test_a_large_dimension_colours_all_tokens(visit):
    visit.open("/run/latest:talk/tokens?position=4")
    visit.draw()
    button = visit.page.locator('figure[data-chart="token_dims"] button.token').first
    dimension = button.inner_text()
    button.click()
    settle(visit)
    assert text(visit, "#colour-title") == f"Dimension {dimension} of hidden_out, layer 1"


def test_thousands_of_tokens_are_there_when_they_are_looked_at(visit):
    visit.open("/run/latest:long/tokens?find=t17")
    there = "document.querySelectorAll('#conversation [role=\"option\"]').length"
    assert 100 < visit.page.evaluate(there) < 2500
    worst = visit.page.evaluate(
        """async () => {
          const place = document.getElementById('conversation');
          let last = performance.now(), worst = 0;
          for (let step = 0; step < 40; step += 1) {
            place.scrollTop += place.scrollHeight / 40;
            await new Promise(requestAnimationFrame);
            worst = Math.max(worst, performance.now() - last);
            last = performance.now();
          }
          place.scrollTop = place.scrollHeight;
          return worst;
        }"""
    )
    visit.page.wait_for_timeout(150)
    assert visit.page.is_visible(f"#token-{LONG - 1}") and worst < 500
    assert visit.page.evaluate(there) < 2500
    visit.page.focus("#find")
    visit.page.keyboard.press("Enter")
    assert locked(visit) == [17] and visit.page.is_visible("#token-17")


def test_pointing_answers_at_once(visit):
    visit.open("/run/latest:long/tokens")
    took = visit.page.evaluate(
        """() => [...document.querySelectorAll('#conversation [role="option"]')].slice(0, 50).map((token) => {
          const from = performance.now();
          token.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
          if (!document.getElementById('preview').textContent.includes(`position ${token.position},`)) return Infinity;
          return performance.now() - from;
        })"""
    )
    assert sorted(took)[len(took) // 2] < 50


def test_words_of_the_enemy_are_words(visit):
    visit.open("/run/latest:words/tokens?find=alert")
    assert visit.page.locator("#token-3").inner_text().startswith("</script><script>alert(1)")
    assert "hit" in visit.page.get_attribute("#token-3", "class")
    visit.open(f"/search?q={HOSTILE[:9]}")
    visit.draw()
    assert visit.page.locator("#found a", has_text="</script>").count() >= 2


def test_a_search_leads_to_the_token(visit):
    visit.open("/search?kind=token&q=Hello")
    visit.draw()
    with visit.page.expect_navigation():
        visit.page.locator("#found a").nth(1).click()
    settle(visit)
    assert locked(visit) == [1] and "/tokens?" in visit.page.url
    with visit.page.expect_navigation():
        visit.page.locator("#search-near").click()
    settle(visit)
    assert visit.draw().get("drawn") == 2
    assert "1.0000" in text(visit, "#near tbody tr >> nth=0")


def test_a_pasted_vector_finds_what_is_nearest(visit):
    visit.open("/search?kind=vector")
    visit.page.fill("textarea", "tensor([1e-1, -2.5, .5,\n 3, 0, 0, 0, 0, 0, 0, 0, 1])")
    visit.page.locator('[name="layer"]').fill("1")
    with visit.page.expect_navigation():
        visit.page.locator("#search button[type=submit]").click()
    settle(visit)
    visit.draw()
    assert visit.page.locator("#near tbody tr").count() == 20
    visit.open("/search?kind=vector&vector=[1,0,0,0,0,0,0,0,0,0,0,0]")
    visit.draw()
    assert "hidden_out, layer 1" in text(visit, "#near figcaption")
    assert visit.page.locator("#near tbody tr").count() == 20
    visit.open("/search?kind=vector&layer=1&site=hidden_out&vector=[1,x]")
    visit.page.wait_for_timeout(200)
    assert "Conversion Error" in text(visit, "#near")
    visit.problems.clear()  # the console tells of the refusal
