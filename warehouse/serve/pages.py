"""The pages: templates of `reports/serve` in the report's own dress."""

import hashlib
import json
import re
from functools import cached_property
from typing import Any
from urllib.parse import quote_plus

from starlette.responses import HTMLResponse, Response

from warehouse.assets import asset_dir
from warehouse.lake.lake import Lake
from warehouse.report import page

#: What the header leads to: address, name.
PLACES = (
    ("/", "Runs"),
    ("/compare", "Compare"),
    ("/search", "Search"),
    ("/sql", "SQL"),
    ("/capture", "Capture"),
    ("/models", "Models"),
)
#: What there is of a run: the last part of its address, its name, what the run has to have for it.
PARTS = (
    ("", "Overview", ""),
    ("tokens", "Tokens", "tokens"),
    ("attention", "Attention", "attention"),
    ("lens", "Lens", "logit_lens"),
    ("residual", "Residual", "residual"),
    ("neuron", "Neurons", "activations"),
    ("references", "References", "references"),
    ("tensor", "Tensors", "tensors"),
    ("dataset", "Dataset", "labels"),
)


class Pages:
    """Fills templates, and has the files that pages refer to.

    Args:
        lake: the lake that they are about.
    """

    def __init__(self, lake: Lake):
        self._env = page.environment()
        self._env.globals |= {
            "places": PLACES,
            "warehouse": lake.home.name,
            "address": address,
            "static": self.address_of,
        }

    @cached_property
    def charts(self) -> dict[str, dict]:
        """Every chart: the report's, and those of `reports/serve/charts`."""
        files = (asset_dir("reports") / "serve" / "charts").glob("*.vl.json")
        own = {f.name.removesuffix(".vl.json"): json.loads(f.read_bytes()) for f in sorted(files)}
        return page.charts(with_datasets=True) | own

    @cached_property
    def measures(self) -> dict[str, dict]:
        """The words for each measured column, likewise."""
        own = json.loads((asset_dir("reports") / "serve" / "measures.json").read_bytes())
        return page.measures(with_datasets=True) | own

    @cached_property
    def files(self) -> dict[str, tuple[str, bytes]]:
        """Media type and content of the files that pages refer to, by name."""
        folder = asset_dir("reports")
        code = sorted(path.relative_to(folder).as_posix() for path in folder.glob("serve/*.js"))
        code = ["report.js", "tokens.js", "datasets/datasets.js", *code]
        script = page.script(*code, registry={"charts": self.charts, "measures": self.measures})
        css = sorted(path.relative_to(folder).as_posix() for path in folder.glob("serve/*.css"))
        return {
            "alab.js": ("text/javascript", script.encode()),
            "alab.css": (
                "text/css",
                page.styles("report.css", "datasets/datasets.css", *css).encode(),
            ),
        }

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {n: hashlib.sha256(text).hexdigest()[:16] for n, (_, text) in self.files.items()}

    def address_of(self, name: str) -> str:
        """Where a file is found; another content has another address, so that it may be kept."""
        return f"/static/{self._digests[name]}/{name}"

    def file(self, digest: str, name: str) -> Response:
        """A file that pages refer to; 404 where it is another or none."""
        if name not in self.files or self.address_of(name) != f"/static/{digest}/{name}":
            return Response("there is no such file", 404)
        media, content = self.files[name]
        keep = {"Cache-Control": "private, max-age=31536000, immutable"}
        return Response(content, media_type=media, headers=keep)

    def render(self, name: str, *, status: int = 200, **context: Any) -> Response:
        """A page of the template `serve/<name>.html.j2`.

        Its script reads `registry`: the colours of what has one, and what the page says in `data`.
        """
        data = context.pop("data", {})
        registry = {
            "scales": page.scales(data.get("labels", ())),
            "queries": {},
            "tables": {},
            "sites": data.get("sites", []),
            "compared": None,
            "names": {},
            **data,
        }
        template = self._env.get_template(f"serve/{name}.html.j2")
        text = template.render(
            {"registry": registry, "charts": self.charts, "run": None, **context}
        )
        return HTMLResponse(text, status)

    def problem(self, status: int, message: str, hint: str = "") -> Response:
        """A page that says what went wrong, and what to do next."""
        return self.render("problem", status=status, title="alab", message=message, hint=hint)

    def stranger(self, path: str, query: str) -> Response:
        """What a browser is shown that did not come through the printed address.

        One that has the cookie does not send it along when a page elsewhere linked here; a click
        on this page's own link does.
        """
        here = path + (f"?{query}" if query else "")
        return self.render("stranger", status=403, title="alab", here="/" + here.lstrip("/"))


def address(path: str, **values: Any) -> str:
    """An address of ours with values in its query; None leaves one out, a list repeats it.

    >>> address("/data/tokens", run="joy_1", layer=None, runs=["a", "b"])
    '/data/tokens?run=joy_1&runs=a&runs=b'
    """
    several = {
        key: value if isinstance(value, list | tuple) else [value] for key, value in values.items()
    }
    some = [(key, str(one)) for key, all_ in several.items() for one in all_ if one is not None]
    text = "&".join(f"{key}={_quoted(value)}" for key, value in some)
    return f"{path}?{text}" if text else path


def _quoted(text: str) -> str:
    # A choice stays as it is for the script, which fills it in; a `$` in other text is text.
    return text if re.fullmatch(r"\$\w+", text) else quote_plus(text)
