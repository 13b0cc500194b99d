"""A check for a machine with a GPU, as one script: that a capture there is right, and what it costs.

    python tests/device/check_device.py [--small]

It needs torch, transformers, pyarrow and alab's other libraries, and no weights: models are random, from their
configs. Without a CUDA device it runs on the CPU with a small model, so that the script itself is tested. It prints
a line for each thing that it checks, for conversations and datasets, then ratios over the bare model, and ends with
status 1 if something is wrong.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

from warehouse.capture.threads import let_threads_sleep

let_threads_sleep()  # as the command line does, before torch is imported

import pyarrow as pa
import tiny
import torch
from bench_capture import bare
from bench_dataset import ONE_SITE, batches_of
from bench_dataset import bare as bare_batches
from transformers import AutoConfig, AutoModelForCausalLM

from warehouse import scenario
from warehouse.capture import conversation as capture
from warehouse.capture import plan
from warehouse.capture.dataset_run import capture_dataset
from warehouse.catalog import catalog
from warehouse.lake.lake import Lake
from warehouse.models import limits, sites
from warehouse.models import loading as models

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAMILIES = ("llama", "qwen3", "gemma2", "gpt2", "falcon", "phi3", "mixtral", "qwen3_next")
EVERYTHING = {"top_k_probs": 5}
RESIDUAL_ONLY = {"attention_weights": False, "qkv": False, "mlp": False, "logits": False}

failures: list[str] = []


def tell(what: str, right: bool, more: str = "") -> None:
    print(f"{'ok ' if right else 'BAD'} {what}  {more}", flush=True)
    if not right:
        failures.append(what)


def talk(turns: int, words: int, new: int, store: str, dtype: str, **flags) -> scenario.Scenario:
    """A conversation of byte tokens, with references."""
    text = " ".join(f"word{n}" for n in range(words))
    chat = [{"role": ("user", "assistant")[n % 2], "content": f"{n}: {text}"} for n in range(turns)]
    return scenario.parse({
        "name": "device", "model": {"id": "random", "dtype": dtype, "device": DEVICE}, "prompt": {"messages": chat},
        "generation": {"max_new_tokens": new}, "capture": {"store_dtype": store, **flags},
        "reference_states": [
            {"label": label, "messages": [{"role": "user", "content": label * 3}]} for label in ("joy", "fear", "calm")
        ],
    })  # fmt: skip


def loaded(model, dtype: str) -> models.Loaded:
    """The model on the device; random models end anywhere, so nothing ends a reply."""
    model = model.to(DEVICE, getattr(torch, dtype)).eval()
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    return models.Loaded(model, tokenizer, "random", dtype, DEVICE)


def big(small: bool) -> torch.nn.Module:
    """A random llama of about 1.5 billion parameters, or a small one."""
    width, layers, vocabulary = (64, 3, 320) if small else (2048, 24, 32_000)
    config = AutoConfig.for_model(
        "llama", vocab_size=vocabulary, hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=width // 16 if small else 16, num_key_value_heads=width // 16 if small else 8,
        max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="eager"
        )


def check_family(family: str, dtype: str, folder: Path) -> None:
    """The sites of a tiny model on the device, and its tensors against hooks of one's own."""
    model = loaded(tiny.model_of(family), dtype)
    found = sites.discover(model.model)
    wanted = talk(3, 4, 4, "float32" if dtype == "float32" else "bfloat16", dtype)
    lake = Lake(folder / f"{family.replace(':', '-')}-{dtype}")
    capture.capture_one(wanted, model, found, lake)
    with catalog.connect(lake) as db:
        ids = [
            i
            for (i,) in db.execute(
                "SELECT token_id FROM tokens WHERE step = 0 ORDER BY position"
            ).fetchall()
        ]
        generated = [
            i
            for (i,) in db.execute("SELECT generated_token_id FROM steps ORDER BY step").fetchall()
        ]
        errors = db.execute(
            "SELECT max(residual_error), max(continuity_error) FROM layers"
        ).fetchone()
        stored = dict(db.execute("SELECT layer, list(hidden_out ORDER BY position) FROM activations WHERE step = 0 "
                                 "GROUP BY layer").fetchall())  # fmt: skip
    outputs, logits = passes(model.model, found, ids, generated)
    same = [torch.equal(torch.tensor(stored[n]), outputs[n].float().cpu()) for n in stored]
    with catalog.connect(lake) as db:
        kept = torch.tensor(
            [
                row
                for (row,) in db.execute("SELECT logits FROM outputs ORDER BY position").fetchall()
            ]
        )
    rounding = 8 * torch.finfo(getattr(torch, dtype)).eps
    tell(
        f"{family} {dtype}", all(same) and torch.equal(kept, logits) and (errors[0] or 0) <= rounding and not errors[1],
        f"hidden_out equal {sum(same)}/{len(same)}, logits equal {torch.equal(kept, logits)}, residual {errors[0]}",
    )  # fmt: skip


def passes(
    model, found, ids: list[int], generated: list[int]
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """What each layer gave in the prefill, and the logits of every token, by the passes that a capture makes."""
    outputs: dict[int, torch.Tensor] = {}

    def keep(layer: int):
        def hook(module, args, output) -> None:
            outputs[layer] = (output[0] if isinstance(output, tuple) else output).reshape(
                len(ids), -1
            )

        return hook

    handles = [
        model.get_submodule(one.module).register_forward_hook(keep(n))
        for n, one in enumerate(found.layers)
    ]
    with torch.inference_mode():
        output = model(torch.tensor([ids], device=DEVICE), use_cache=True)
        for handle in handles:
            handle.remove()
        logits = [output.logits[0]]
        for token in generated[:-1]:
            output = model(
                torch.tensor([[token]], device=DEVICE), use_cache=True,
                **{limits.cache_name(model): limits.cache_in(output)},
            )  # fmt: skip
            logits.append(output.logits[0])
    return outputs, torch.cat(logits).float().cpu()


def check_states(model: models.Loaded, lake: Lake, run_id: str) -> None:
    """References against a pass of their own, and a hook that a caller puts on a layer."""
    with catalog.connect(lake) as db:
        rows = db.execute("SELECT label, layer, vector FROM states_of(?) WHERE state = 'reference' "
                          "AND site = 'hidden_out'", [run_id]).fetchall()  # fmt: skip
    tokenizer, worst = model.tokenizer, 0.0
    for label in {row[0] for row in rows}:
        message = [{"role": "user", "content": label * 3}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        outputs, _ = passes(model.model, sites.discover(model.model, sharing=False), ids, [0])
        for layer, vector in ((row[1], torch.tensor(row[2])) for row in rows if row[0] == label):
            own = outputs[layer][-1].float().cpu()
            worst = max(worst, float((vector - own).norm() / own.norm()))
    eps = torch.finfo(model.model.dtype).eps
    tell(
        "references read together are those read alone",
        worst < 40 * eps,
        f"largest relative difference {worst:.1e}",
    )


def measure(model: models.Loaded, small: bool, folder: Path) -> None:
    """Capture over the bare model that makes the same passes, each the median of three after one to warm up."""
    for name, flags in (("everything", EVERYTHING), ("residual stream only", RESIDUAL_ONLY)):
        wanted = talk(
            4 if small else 20,
            4 if small else 14,
            8 if small else 50,
            "bfloat16",
            model.dtype,
            **flags,
        )
        found = sites.discover(model.model)
        planned = plan.make_plan(wanted, model, found)
        lake = Lake(folder / name.split()[0])
        catalog.sync(lake)
        times: dict[str, list[float]] = {"bare": [], "capture": []}
        for turn in range(4):
            for way in times:
                start = time.perf_counter()
                if way == "bare":
                    bare(model, planned, wanted, True)
                    if DEVICE == "cuda":
                        torch.cuda.synchronize()
                else:
                    run_id = capture.capture_one(wanted, model, found, lake)
                if turn:
                    times[way].append(time.perf_counter() - start)
        bare_s, capture_s = (statistics.median(times[way]) for way in times)
        tokens = len(planned.prompts[0][1].ids)
        size = sum(
            path.stat().st_size for path in lake.root.glob(f"[!.]*/run={run_id}/**/*.parquet")
        )
        print(
            f"    {name}: {capture_s / bare_s:.2f} times the bare model ({capture_s:.2f} s over {bare_s:.2f} s; "
            f"{tokens} tokens, {wanted.generation.max_new_tokens} new, {size / 1e6:.0f} MB a run)", flush=True,
        )  # fmt: skip
        if flags is EVERYTHING:
            check_states(model, lake, run_id)


def rows_of(count: int) -> list[str]:
    """Texts of many lengths, in an order that has nothing to do with them."""
    return [f"{n}: " + "ab " * (1 + n * 7 % 19) for n in range(count)]


def capture_rows(model: models.Loaded, found, lake: Lake, texts: list[str]) -> str:
    store = "float32" if model.dtype == "float32" else "bfloat16"
    request = scenario.parse({
        "name": "rows", "model": {"id": "random", "dtype": model.dtype, "device": DEVICE},
        "prompt": {"dataset": {"text": "{{ text }}"}}, "capture": {"store_dtype": store, **ONE_SITE},
    })  # fmt: skip
    return capture_dataset(request, model, found, lake, source=pa.table({"text": texts}))


def check_dataset(family: str, dtype: str, folder: Path) -> None:
    """Rows of a dataset against the same texts read alone, by hooks of one's own; `batch_error`."""
    model = loaded(tiny.model_of(family), dtype)
    found, texts = sites.discover(model.model, batches=True), rows_of(60)
    lake = Lake(folder / f"rows-{family.replace(':', '-')}-{dtype}")
    run_id = capture_rows(model, found, lake, texts)
    with catalog.connect(lake) as db:
        alone, error = db.execute(
            "SELECT alone, batch_error FROM dataset_overview(?)", [run_id]
        ).fetchone()
        stored = db.execute(
            "SELECT prompt_id, layer, hidden_out FROM activations ORDER BY prompt_id, layer"
        ).fetchall()
    worst = 0.0
    own = [passes(model.model, found, ids, [0])[0] for ids in model.tokenizer(texts)["input_ids"]]
    for prompt, layer, vector in stored:
        expected = own[prompt][layer][-1].float().cpu()
        worst = max(worst, float((torch.tensor(vector) - expected).norm() / expected.norm()))
    eps = torch.finfo(getattr(torch, dtype)).eps
    limit = 1e-5 if dtype == "float32" else 16 * eps
    complete = len(stored) == len(texts) * len(own[0])
    tell(
        f"{family} {dtype}, rows of a dataset", complete and (error or 0) <= limit and worst <= limit,
        f"batch_error {error}, worst of {len(stored)} vectors {worst:.1e}, read alone {alone}/{len(texts)}",
    )  # fmt: skip


def measure_dataset(model: models.Loaded, small: bool, folder: Path) -> None:
    """Last tokens of a dataset over the bare model in the same batches, medians of three after a first."""
    texts, lake = rows_of(200 if small else 8_000), Lake(folder / "rows")
    found = sites.discover(model.model, batches=True)
    catalog.sync(lake)
    run_id = capture_rows(model, found, lake, texts)  # to warm up, and for its batches
    with catalog.connect(lake) as db:
        batches = batches_of(db, run_id)
        overview = "SELECT tokens, alone, batch_error FROM dataset_overview(?)"
        tokens, alone, error = db.execute(overview, [run_id]).fetchone()
    tell("a dataset is read in batches", alone == 0, f"batch_error {error}")
    tell("the bare model reads the same tokens", bare_batches(model, texts, batches) == tokens)
    times: dict[str, list[float]] = {"bare": [], "capture": []}
    for _ in range(3):
        for way in times:
            start = time.perf_counter()
            if way == "bare":
                bare_batches(model, texts, batches)
                if DEVICE == "cuda":
                    torch.cuda.synchronize()
            else:
                capture_rows(model, found, lake, texts)
            times[way].append(time.perf_counter() - start)
    bare_s, capture_s = (statistics.median(times[way]) for way in times)
    print(
        f"    dataset, last tokens: {capture_s / bare_s:.2f} times the bare model ({capture_s:.2f} s over {bare_s:.2f} s; "
        f"{len(texts)} prompts, {tokens} tokens, {len(batches)} batches)", flush=True,
    )  # fmt: skip


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--small", action="store_true", help="a small model, as on a machine without a GPU"
    )
    small = options.parse_args().small or DEVICE == "cpu"
    card = (
        torch.cuda.get_device_name(0)
        if DEVICE == "cuda"
        else "no CUDA device: the CPU, with a small model"
    )
    print(f"{card}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for dtype in ("float32",) if small else ("float32", "bfloat16"):
            for family in FAMILIES[: 2 if small else None]:
                for check in (check_family, check_dataset):
                    try:
                        check(family, dtype, folder)
                    except Exception as error:  # told, and the next is checked
                        what = f"{check.__name__} {family} {dtype}"
                        tell(what, False, f"{type(error).__name__}: {error}")
        model = loaded(big(small), "bfloat16")
        count = sum(p.numel() for p in model.model.parameters())
        print(f"    a random llama of {count / 1e9:.2f} billion parameters, bfloat16")
        measure(model, small, folder)
        measure_dataset(model, small, folder)
        if DEVICE == "cuda":
            print(
                f"    most memory on the device: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
            )
    print(f"{len(failures)} failed" if failures else "all right")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
