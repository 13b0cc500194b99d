"""Strangers are kept out, whatever they send; and what else can go wrong in a request."""

import json
import random
from urllib.parse import quote

import pytest
from asker import Asker, state

from warehouse.serve import workers


@pytest.fixture(scope="module")
def asker(service) -> Asker:
    return Asker(service)


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_never_have(asker):
    answer = asker.get(f"/run/latest:talk?step=2&token={asker.token}")
    assert (answer.status, answer.getheader("location")) == (303, "/run/latest:talk?step=2")
    cookie = answer.getheader("set-cookie").lower()
    port = asker.host.rpartition(":")[2]
    assert f"alab_{port}=" in cookie and "httponly" in cookie and "samesite=strict" in cookie
    assert len(asker.token) >= 43  # 256 bits


@pytest.mark.parametrize("cookie", [None, "alab_1=x", "alab_{port}=wrong", "alab_{port}=é", "=;=;"])
@pytest.mark.parametrize("path", ["/", "/sql", "/data/runs_page", "/static/0/alab.js", "/nowhere"])
def test_who_lacks_the_cookie_sees_nothing(asker, path, cookie):
    cookie = cookie and cookie.replace("{port}", asker.host.rpartition(":")[2])
    answer = asker.get(path, Cookie=cookie and cookie.encode().decode("latin-1"))
    assert answer.status == 403 and b"talk_" not in answer.body


def test_a_link_from_elsewhere_can_be_followed_by_hand(asker):
    answer = asker.get("/sql?q=SELECT+1", Accept="text/html")
    assert answer.status == 403 and b'href="/sql?q=SELECT+1"' in answer.body


@pytest.mark.parametrize(
    "path", ["//evil.example/?token={}", "/\\evil.example/?token={}", "/%2F/evil.example?token={}"]
)
def test_the_welcome_leads_nowhere_else(asker, path):
    location = asker.get(path.format(asker.token)).getheader("location") or "/"
    assert location.startswith("/") and not location.startswith(("//", "/\\"))


@pytest.mark.parametrize(
    "host",
    [
        None,
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "localhost:1",
        "127.0.0.1:{port}.evil.example",
        "",
    ],
)
def test_a_foreign_host_is_refused(asker, host):
    host = host and host.replace("{port}", asker.host.rpartition(":")[2])
    answer = asker.get("/", Host=host, Cookie=asker.cookie)
    assert answer.status in (400, 421) and b"talk_" not in answer.body


def test_its_other_names_are_its_own(asker):
    port = asker.host.rpartition(":")[2]
    assert asker.get("/", Host=f"localhost:{port}", Cookie=asker.cookie).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "https://{host}"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Cookie": None}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": None}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Length": "99999999"}, 413),
    ],
)
def test_what_changes_something_is_asked_by_our_own_pages_alone(asker, headers, status):
    headers = {name: text and text.replace("{host}", asker.host) for name, text in headers.items()}
    answer = asker.post("/api/sql", {"sql": "SELECT 1"}, **headers)
    assert answer.status == status and b"cells" not in answer.body


def test_a_page_of_ours_may_ask(asker):
    answer = asker.post("/api/sql", {"sql": "SELECT $a + 1 AS b", "params": {"a": 2}})
    assert json.loads(answer.body)["cells"] == [[3]]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'{"sql": 1}',
        b'{"sql": " "}',
        b'{"sql": "SELECT 1", "params": []}',
        b"\xff",
        b"[" * 100_000,
        b'{"sql": "\\ud800"}',
    ],
)
def test_a_body_that_is_none_is_told(asker, body):
    answer = asker.post("/api/sql", body)
    assert answer.status == 400 and json.loads(answer.body)["error"]


def test_every_answer_says_what_a_browser_may_do_with_it(asker):
    for path in ("/", "/nowhere", "/data/nothing", "/sql"):
        answer = asker.get(path, Cookie=asker.cookie, Accept="text/html")
        policy = answer.getheader("content-security-policy")
        assert "default-src 'none'" in policy and "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy and "unsafe-eval" not in policy
        assert answer.getheader("x-content-type-options") == "nosniff"
        assert answer.getheader("access-control-allow-origin") is None


@pytest.mark.parametrize(
    "path",
    [
        "/static/../../../../etc/passwd", "/static/x/..%2f..%2f..%2fetc%2fpasswd", "/data/..%2f..%2fqueries%2fruns",
        "/data/%2e%2e%2fruns.json", "/data/run.json?run=../../etc", "/run/..%2f..%2fetc", "/data/runs_page.exe",
        "/data/run.json?run=%00", "/run/%00", "/run/" + "a" * 5000,
    ],
)  # fmt: skip
def test_nothing_of_an_address_becomes_a_path(asker, path):
    answer = asker.get(path, Cookie=asker.cookie)
    assert answer.status in (400, 404) and b"root:" not in answer.body


def test_a_thousand_random_requests_break_and_change_nothing(asker, conversations):
    rng, before = random.Random(7), state(conversations.warehouse)
    words = ["run", "data", "static", "sql", "api", "latest", "..", "%2e%2e", "talk", "tokens", "residual", "0", "-1",
             "é", "\x7f", "'", '"', "<script>", "%00", "%ff", "runs_page", "run", ".json", ".csv", "compare", "search", "report", "jobs", "capture", "models", "tensor", "dataset"]  # fmt: skip
    names = [
        "run",
        "runs",
        "step",
        "layer",
        "prompt",
        "site",
        "q",
        "token",
        "ref",
        "k",
        "position",
        "x",
    ]
    values = [
        "latest",
        "",
        "-1",
        "99999999999999999999",
        "1e9",
        "NaN",
        "'; DROP TABLE runs; --",
        "\u202e",
        "a" * 300,
        "%",
        "talk",
        "hidden_out",
        "3",
    ]
    statuses = set()
    for _ in range(1000):
        path = "/" + "/".join(rng.choice(words) for _ in range(rng.randint(0, 4)))
        query = "&".join(
            f"{rng.choice(names)}={quote(rng.choice(values))}" for _ in range(rng.randint(0, 4))
        )
        path = quote(path, safe="/%.<>'\"") + (f"?{query}" if query else "")
        method = rng.choice(["GET"] * 8 + ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
        if method == "GET" or method == "HEAD":
            answer = asker.send(
                method, path, Cookie=asker.cookie, Accept=rng.choice(["text/html", "*/*"])
            )
        else:
            body = rng.choice(
                [b"{}", b"[]", b"x", json.dumps({"sql": rng.choice(values)}).encode()]
            )
            own = {
                "Origin": f"http://{asker.host}",
                "Content_Type": "application/json",
                "Cookie": asker.cookie,
            }
            answer = asker.send(method, path, body, **own)
        statuses.add(answer.status)
        assert answer.status < 500, (method, path, answer.status, answer.body[:500])
    assert {200, 400, 404} <= statuses
    assert state(conversations.warehouse) == before


# --- what else can go wrong ------------------------------------------------------------------------


def test_a_query_that_runs_for_ever_is_stopped_and_the_pages_go_on(asker):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "SECONDS", 1.0)
        endless = "SELECT count(*) FROM range(100000000000) AS a, range(1000) AS b"
        answer = asker.post("/api/sql", {"sql": endless})
    assert answer.status == 400 and "longer than 1 s" in json.loads(answer.body)["error"]
    assert json.loads(asker.post("/api/sql", {"sql": "SELECT 1 AS a"}).body)["cells"] == [[1]]
    assert asker.get("/", Cookie=asker.cookie).status == 200


def test_more_rows_than_are_shown_are_cut_and_that_is_said(asker):
    answer = json.loads(asker.post("/api/sql", {"sql": "FROM range(5000)"}).body)
    assert (len(answer["cells"]), answer["cut"], answer["limit"]) == (1000, True, 1000)
    whole = asker.post("/api/sql.csv", {"sql": "FROM range(5000)"})
    assert b"There are: json, csv, parquet" in asker.post("/api/sql.xml", {"sql": "SELECT 1"}).body
    assert whole.body.decode().split() == ["range", *map(str, range(5000))]


def test_a_query_is_kept_as_a_file_and_taken_away(asker, conversations):
    kept = conversations.warehouse / "queries" / "my query.sql"
    asker.post("/api/queries", {"name": "my query", "sql": "SELECT 1"})
    assert kept.read_text() == "SELECT 1"
    assert json.loads(asker.post("/api/queries", {"name": "my query", "sql": ""}).body) == {
        "saved": []
    }
    assert not kept.exists()
    for name in ("../x", "/x", ".x", "a/b", "x\0", "", "a" * 99, "x.sql"):
        assert asker.post("/api/queries", {"name": name, "sql": "SELECT 1"}).status == 400
    kept.parent.rmdir()
