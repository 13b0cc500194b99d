"""`alab demo`: a first run on a real model, an answer, a report, and what to try next."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from warehouse import advice, assets
from warehouse.cli.output import show
from warehouse.lake.lake import Lake

#: Towards which emotion does each message move the model, in hundredths of cosine?
QUESTION = assets.query("demo").strip()


def run(lake: Lake, say: Callable[[str], None], progress: Callable[[str, int, int], None]) -> None:
    """Capture `scenarios/quickstart.yaml` on the embedded model, ask one question, write a report.

    Further calls add further runs. `say` prints the results.
    """
    from warehouse.capture.runs import capture_files
    from warehouse.report.write import write_report

    scenario = assets.asset_dir("scenarios") / "quickstart.yaml"
    (run_id,) = capture_files([scenario], lake.warehouse, progress=progress)
    progress("writing the report", 0, 0)
    report, *_ = write_report(lake, [run_id])
    say(f"captured {run_id}\n\nTowards which emotion does each message move the model?\n")
    say(f"{QUESTION}\n")
    show(lake, QUESTION, fmt="table")
    say(f"\nwarehouse  {advice.short(lake.warehouse)}")
    say(f"report     {advice.short(report)}  (open it in a browser)\n")
    say("\n  ".join(["Next:", *commands(lake)]))


def commands(lake: Lake) -> list[str]:
    """What to try next, to be typed as it is."""
    alab = advice.alab(lake.warehouse)
    lines = [
        f"{alab} sql --list",
        f"{alab} sql \"from intra_run_summary('latest')\"",
        f"{alab} capture {advice.quoted(assets.asset_dir('scenarios') / 'emotions.yaml')}",
    ]
    if importlib.util.find_spec("starlette") and importlib.util.find_spec("uvicorn"):
        lines.insert(0, f"{alab} serve --open")
    # The one that was installed beside alab: another may be too old to open the file.
    shell = Path(sys.executable).with_name("duckdb")
    if shell.is_file() and not lake.remote:
        question = "from snapshot_reference('latest') limit 5"
        lines.append(f'{advice.program(shell)} {advice.quoted(lake.catalog)} -c "{question}"')
    return lines
