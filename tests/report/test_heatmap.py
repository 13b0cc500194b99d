import numpy as np
import pytest
from click.testing import CliRunner

from warehouse.catalog import catalog
from warehouse.cli.commands import main
from warehouse.errors import AlabError
from warehouse.report.heatmap import colormap, heatmaps, limits, write_png

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def tensor(lake, run_id: str, site: str, layer: int, step: int) -> np.ndarray:
    with catalog.connect(lake) as db:
        query = f"SELECT {site} FROM activations WHERE run_id = ? AND layer = ? AND step = ? ORDER BY position"
        return np.array([row[0] for row in db.execute(query, [run_id, layer, step]).fetchall()])


def expected(values: np.ndarray, low: float, high: float, cmap: str) -> np.ndarray:
    from matplotlib import colormaps

    return np.rint(colormaps[cmap]((values - low) / (high - low))[..., :3] * 255)


def test_every_layer_and_step_gets_a_picture(two_runs, tmp_path):
    lake, alpha, _ = two_runs
    files = heatmaps(lake, alpha, source="hidden_out", out=tmp_path)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in files)
    assert names == [
        f"hidden_out/layer_{n:02d}_step_{s:03d}.png" for n in range(3) for s in range(4)
    ]
    assert Image.open(files[0]).size == (16, 12)
    assert sorted(tmp_path.rglob("*.png")) == sorted(files)


@pytest.mark.parametrize(
    ("normalize", "cmap"), [("per_image", "viridis"), ("signed", "coolwarm"), ("none", "gray")]
)
def test_colours_are_those_of_matplotlib(two_runs, tmp_path, normalize, cmap):
    lake, alpha, _ = two_runs
    (path,) = heatmaps(
        lake, alpha, source="q", layers="1", steps="0", normalize=normalize, cmap=cmap, out=tmp_path
    )
    values = tensor(lake, alpha, "q", 1, 0)
    most = np.abs(values).max()
    low, high = {
        "per_image": (values.min(), values.max()),
        "signed": (-most, most),
        "none": (-1, 1),
    }[normalize]
    assert np.abs(pixels(path) - expected(values.clip(low, high), low, high, cmap)).max() <= 3


def test_global_shares_one_scale(two_runs, tmp_path):
    lake, alpha, _ = two_runs
    files = heatmaps(
        lake, alpha, source="mlp_act", steps="0,2", normalize="global", cmap="gray", out=tmp_path
    )
    tensors = {(n, s): tensor(lake, alpha, "mlp_act", n, s) for n in range(3) for s in (0, 2)}
    low, high = min(t.min() for t in tensors.values()), max(t.max() for t in tensors.values())
    found = {path.name: pixels(path) for path in files}
    for (layer, step), values in tensors.items():
        shade = found[f"layer_{layer:02d}_step_{step:03d}.png"][..., 0]
        assert np.abs(shade - (values - low) / (high - low) * 255).max() <= 2
    assert min(shade.min() for shade in found.values()) == 0
    assert max(shade.max() for shade in found.values()) == 255
    alone = heatmaps(
        lake,
        alpha,
        source="mlp_act",
        steps="2",
        normalize="per_image",
        cmap="gray",
        out=tmp_path / "b",
    )
    assert all(pixels(path).max() == 255 for path in alone)


def test_attention_by_head_and_on_average(two_runs, tmp_path):
    lake, alpha, _ = two_runs
    files = heatmaps(
        lake,
        alpha,
        layers="0",
        steps="0",
        per_head=True,
        normalize="none",
        cmap="gray",
        out=tmp_path,
    )
    assert [path.name for path in files] == [f"layer_00_step_000_head_{h:02d}.png" for h in (0, 1)]
    heads = np.stack([pixels(path)[..., 0] for path in files])
    assert (heads[:, np.triu_indices(12, 1)[0], np.triu_indices(12, 1)[1]] == 0).all()
    np.testing.assert_allclose(heads.sum(-1), 255, atol=7)
    (mean,) = heatmaps(
        lake, alpha, layers="0", steps="0", normalize="none", cmap="gray", out=tmp_path / "b"
    )
    assert np.abs(pixels(mean)[..., 0] - heads.mean(0)).max() <= 1
    (decode,) = heatmaps(lake, alpha, layers="0", steps="2", out=tmp_path / "c")
    assert Image.open(decode).size == (14, 1)


def test_heads_of_a_projection_and_absolute_values(two_runs, tmp_path):
    lake, alpha, _ = two_runs
    options = {
        "layers": "2",
        "steps": "0",
        "per_head": True,
        "reduce": "abs",
        "normalize": "none",
        "cmap": "gray",
    }
    files = heatmaps(lake, alpha, source="k", out=tmp_path, **options)
    values = np.abs(tensor(lake, alpha, "k", 2, 0)).clip(0, 1)
    for head, path in enumerate(files):
        part = values[:, 8 * head : 8 * head + 8] * 255
        assert np.abs(pixels(path)[..., 0] - part).max() <= 2


def test_nan_infinity_and_flat_pictures(tmp_path):
    values = np.array([[0.0, np.nan, 1.0], [np.inf, 0.5, -np.inf]], np.float32)
    assert limits(values) == (0.0, 1.0)
    write_png(tmp_path / "a.png", values, 0.0, 1.0, colormap("gray"))
    assert pixels(tmp_path / "a.png")[..., 0].tolist() == [[0, 128, 255], [128, 128, 128]]
    assert limits(np.full((2, 2), np.nan, np.float32)) == (0.0, 0.0)
    write_png(tmp_path / "b.png", np.ones((2, 2), np.float32), 1.0, 1.0, colormap("gray"))
    assert len(np.unique(pixels(tmp_path / "b.png"))) == 1


def test_axes(two_runs, tmp_path):
    lake, alpha, _ = two_runs
    (path,) = heatmaps(lake, alpha, layers="1", steps="0", axes=True, out=tmp_path)
    assert min(Image.open(path).size) > 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "hidden"}, "no site 'hidden' in this run\nThere are: hidden_in"),
        ({"layers": "7"}, "no layer 7 in this run\nThere are: 0-2"),
        ({"steps": "4"}, "no step 4 in this run\nThere are: 0-3"),
        ({"cmap": "virids"}, "no colormap 'virids'\nAmong the .* viridis"),
        (
            {"source": "hidden_out", "per_head": True},
            "hidden_out has no heads\nThese have: attention, q, k, v",
        ),
    ],
)
def test_what_does_not_exist_is_named(two_runs, tmp_path, options, message):
    lake, alpha, _ = two_runs
    with pytest.raises(AlabError, match=message):
        heatmaps(lake, alpha, out=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_the_command(two_runs, tmp_path):
    lake, *_ = two_runs
    options = [
        "heatmap",
        "latest",
        "--source",
        "v",
        "--layers",
        "0",
        "--steps",
        "1-2",
        "-o",
        str(tmp_path),
    ]
    result = CliRunner().invoke(main, ["-w", str(lake.warehouse), *options])
    assert result.exit_code == 0
    assert result.stdout.split() == [
        str(tmp_path / "v" / f"layer_00_step_00{step}.png") for step in (1, 2)
    ]
