"""`alab demo`: a first run on a real model, an answer, a report, and what to try next."""

from collections.abc import Callable
from pathlib import Path

from warehouse import query
from warehouse.assets import asset_dir
from warehouse.lake import Lake

#: Towards which emotion does each message move the model, in hundredths of cosine?
QUESTION = """\
pivot (select *, left(preview, 32) as message
       from reference_shift('latest') natural join snapshots where site = 'hidden_out')
on label using round(100 * first(shift), 2)
group by message_index, role, message order by message_index"""


def run(lake: Lake, say: Callable[[str], None], progress: Callable[[str, int, int], None]) -> None:
    """Capture `scenarios/quickstart.yaml` on the embedded model, ask one question of it, and write the report.

    Args:
        lake: where the run goes; further calls add further runs.
        say: prints a line of the results.
        progress: told how the capture is going.
    """
    from warehouse.capture import capture_files
    from warehouse.report import write_report

    scenario = asset_dir("scenarios") / "quickstart.yaml"
    (run_id,) = capture_files([scenario], lake.warehouse, progress=progress)
    progress("writing the report", 0, 0)
    report, *_ = write_report(lake, [run_id])
    say(f"captured {run_id}\n\nTowards which emotion does each message move the model?\n\n{QUESTION}\n")
    query.run(lake, QUESTION, "table")
    here = Path.cwd()
    shown = {path: path.relative_to(here) if path.is_relative_to(here) else path for path in (lake.warehouse, report)}
    flag = "" if lake.warehouse == here / "lab" else f" -w {shown[lake.warehouse]}"
    say(
        f"\nwarehouse  {shown[lake.warehouse]}\nreport     {shown[report]}  (open it in a browser)\n\nNext:\n"
        f"  alab{flag} sql --list\n"
        f"  alab{flag} capture {scenario.parent / 'emotions.yaml'}\n"
        f"  duckdb {shown[lake.warehouse] / 'alab.duckdb'} -c \"from intra_run_summary('latest')\""
    )
