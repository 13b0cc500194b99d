"""What alab advises to type works as it is, in the shell that reads it."""

import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import Shape, make_run

from warehouse import advice
from warehouse.errors import AlabError
from warehouse.exchange.export import FORMATS, export
from warehouse.extras import needing, of_model, packages, pip

SCRIPT = Path(sys.executable).with_name("alab")


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A directory, and a PATH without alab."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("ALAB_WAREHOUSE", raising=False)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    return tmp_path


def answers(command: str) -> bool:
    """Whether a command line is alab's, in this directory and with this PATH."""
    done = subprocess.run(
        ["bash", "-c", f"{command} --version"], capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and done.stdout.startswith("alab")


def test_alab_is_named_as_the_shell_finds_it(shell, monkeypatch):
    assert advice.alab() == str(SCRIPT)
    assert answers(advice.alab())
    inside = shell / "my env" / "bin"  # as `make demo` has it, in a directory with a space
    inside.mkdir(parents=True)
    (inside / "alab").symlink_to(SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(inside / "alab")])
    assert advice.alab() == "'my env/bin/alab'"
    assert answers(advice.alab())
    monkeypatch.chdir(inside)
    assert advice.alab() == "./alab"
    other = shell / "other"
    other.mkdir()
    (other / "alab").write_text("#!/bin/sh\nexit 3")
    (other / "alab").chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}:/usr/bin:/bin")
    assert advice.alab() == "./alab"  # another one is found under the name
    monkeypatch.setenv("PATH", f"{inside}:/usr/bin:/bin")
    assert advice.alab() == "alab"
    assert answers("alab")


def test_without_a_script_python_is_named(shell, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["notebook"])
    assert advice.alab() == str(SCRIPT)
    fake = shell / "bin" / "python"
    fake.parent.mkdir()
    fake.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(fake))
    assert advice.alab() == "bin/python -m warehouse.cli"


@pytest.mark.parametrize(("place", "variable", "expected"), [
    ("lab", None, ""),
    ("other", None, " -w other"),
    ("my lab", None, " -w 'my lab'"),
    ("-lab", None, " -w ./-lab"),
    ("lab", "elsewhere", " -w lab"),
    ("elsewhere", "elsewhere", ""),
    ("../up", None, " -w {up}"),
])  # fmt: skip
def test_the_warehouse_is_named_where_it_has_to_be(shell, monkeypatch, place, variable, expected):
    if variable:
        monkeypatch.setenv("ALAB_WAREHOUSE", variable)
    where = (shell / place).resolve()
    assert advice.alab(where) == advice.alab() + expected.format(up=where)


@pytest.mark.parametrize(
    "name",
    ["x.npz", "x.NPY", "x.safetensors", "x.parquet", "x.arrow", "x.zip", "x.tar.gz", "a b.pt"],
)
def test_an_export_is_no_file(shell, lake, name):
    run_id = make_run(lake, "one", Shape(layers=1, steps=2, messages=2, labels=("joy",)))
    with pytest.raises(AlabError, match="an export is a directory of files") as caught:
        export(lake, run_id, Path(name))
    assert caught.value.exit_code == 2
    assert list(shell.glob("*")) == [lake.warehouse]
    done = subprocess.run(
        ["bash", "-c", caught.value.hint], capture_output=True, text=True, check=True
    )
    folder = Path(done.stdout.strip())
    assert folder == shell / Path(name).name.split(".")[0]
    suffix = Path(name).suffix.lower()
    ending = suffix if suffix[1:] in FORMATS else ".npz"
    assert any(path.suffix == ending for path in folder.rglob("*"))


def test_a_name_with_a_dot_is_a_directory_all_the_same(shell, lake):
    run_id = make_run(lake, "one", Shape(layers=1, steps=2, messages=2, labels=("joy",)))
    assert export(lake, run_id, shell / "v1.2", layers="0").is_dir()


def test_what_is_missing_is_named_with_what_brings_it(shell):
    with pytest.raises(AlabError, match="alab heatmap needs no_such_module, which is not installed") as caught, \
            needing("heatmap", "alab heatmap"):  # fmt: skip
        import no_such_module  # noqa: F401
    assert caught.value.hint == f"{sys.executable} -m pip install 'matplotlib>=3.8' 'pillow>=10'"
    assert (
        subprocess.run(
            ["bash", "-c", f"{pip()} --version"], capture_output=True, check=False
        ).returncode
        == 0
    )
    assert packages("no such extra") == []


@pytest.mark.parametrize("missing", ["PIL", "matplotlib"])
def test_a_heatmap_without_its_extra(two_runs, tmp_path, monkeypatch, missing):
    from warehouse.report.heatmap import heatmaps

    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(AlabError, match=f"alab heatmap needs {missing}.*extra 'heatmap'"):
        list(heatmaps(two_runs[0], "latest", out=tmp_path / "pictures"))
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(("error", "name"), [
    (ModuleNotFoundError("No module named 'einops'", name="einops"), "einops"),
    (ImportError("\nX requires the tiktoken library. Install it with `pip install tiktoken`."), "tiktoken"),
])  # fmt: skip
def test_a_model_that_needs_another_package(monkeypatch, error, name):
    from transformers import AutoTokenizer

    from warehouse import scenario
    from warehouse.models import loading as models

    def fails(*args, **options):
        raise error

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fails)
    with pytest.raises(
        AlabError, match=r"(?s)model.id: some/model needs a package that is not installed"
    ) as caught:
        models.load(scenario.Model(id="some/model", device="cpu"))
    assert caught.value.hint.endswith(f"-m pip install {name}")
    assert of_model(ImportError("nothing is known")) == ""
