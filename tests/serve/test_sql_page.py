"""The editor in a real browser: what stands there is of one query, with all its digits, and an address says it."""

import json

import pytest
from browser import executable
from pages_in_browser import Visit

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium on the path"),
]
LARGE = 2**53 + 1


@pytest.fixture
def visit(browser, service):
    visit = Visit(browser, service).open("/sql")
    yield visit
    assert visit.problems == []
    visit.page.close()


def ask(visit, sql: str, **values: str) -> list[str]:
    """Run a query; what its cells show."""
    visit.page.fill("#sql", sql)
    for name, value in values.items():
        visit.page.fill(f'#params [name="{name}"]', value)
    with visit.page.expect_response("**/api/sql"):
        visit.page.click("#query button.main")
    visit.page.wait_for_selector("#stop:disabled")
    return visit.page.locator("#rows td:visible").all_inner_texts()


def file_of(visit) -> list[dict]:
    with visit.page.expect_download() as download:
        visit.page.click('[data-file="json"]')
    return json.loads(download.value.path().read_bytes())


def test_rows_files_and_errors_are_of_the_query_that_is_shown(visit):
    assert ask(visit, "SELECT 42 AS answer") == ["42"]
    visit.page.fill("#sql", "SELECT 7 AS other")
    assert file_of(visit) == [{"answer": 42}]
    assert ask(visit, "SELECT nonsense") == []
    assert "nonsense" in visit.page.inner_text("#problem")
    assert not visit.page.is_visible('[data-file="json"]')
    assert ask(visit, "SELECT 1") == ["1"] and not visit.page.is_visible("#problem")
    visit.page.route("**/api/sql.json", lambda route: route.fulfill(
        status=400, body=json.dumps({"error": "no file.", "hint": "Another form."})))  # fmt: skip
    visit.page.click('[data-file="json"]')
    visit.page.wait_for_selector("#problem:visible")
    assert visit.page.inner_text("#problem") == "no file. Another form."
    visit.problems.clear()  # the console tells of the refusals


def test_values_of_parameters_are_exact_and_in_the_address(visit):
    sql = "SELECT $a = 9007199254740993 AS same, $b AS text, $c[1] = 9007199254740993 AS listed"
    values = {"a": str(LARGE), "b": "it's", "c": f"[{LARGE}]"}
    assert ask(visit, sql, **values) == ["true", "it's", "true"]
    visit.page.reload()
    shown = {
        one.get_attribute("name"): one.input_value()
        for one in visit.page.locator("#params input").all()
    }
    assert shown == values and visit.page.input_value("#sql") == sql
    ask(visit, "SELECT $b AS text", b="other")
    assert "%24a" not in visit.page.url and "%24b=other" in visit.page.url
    visit.page.locator("#history a").nth(1).click()
    assert visit.page.input_value('#params [name="b"]') == "it's"


@pytest.mark.parametrize(("sql", "words"), [
    ("SELECT 1 AS a, 2 AS b WHERE false", "no rows"),
    ("SELECT NULL::INT AS a, NULL::DOUBLE AS b", "no numbers to draw in a and b"),
    ("SELECT 'x' AS a", "No column has numbers"),
])  # fmt: skip
def test_a_chart_of_nothing_says_so(visit, sql, words):
    ask(visit, sql)
    visit.page.select_option("#mark", "points")
    assert words in visit.page.inner_text("#undrawn") and not visit.page.is_visible("#chart")


def test_a_chart_of_large_and_broken_numbers(visit):
    def answered(route):
        body = {
            "names": ["a", "b"],
            "types": ["BIGINT", "DOUBLE"],
            "cut": False,
            "limit": 9,
            "hints": [],
        }
        cells = [[1, "nan"], [str(LARGE), 2.5], [3, "-inf"], [4, None]]
        route.fulfill(body=json.dumps(body | {"cells": cells}))

    visit.page.route("**/api/sql", answered)
    assert str(LARGE) in ask(visit, "SELECT 1")
    visit.page.select_option("#mark", "line")
    assert visit.page.locator("#rows td.number").count() == 7
    visit.page.wait_for_selector("#chart canvas")
