"""The recipe of the built-in guard, on a tiny model: torch computes what llama.cpp does, runs go on where they were."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import write_tiny_llama

from edgeguard.backend import Prefix, RuntimeOptions
from edgeguard.backends import open_backend

torch = pytest.importorskip("torch")
FOLDER = Path(__file__).parents[1] / "models" / "recipe"
sys.path.insert(0, str(FOLDER))

import contrasts  # noqa: E402
import data  # noqa: E402
import export  # noqa: E402
import network as network_module  # noqa: E402
import synthetic  # noqa: E402
import train  # noqa: E402
from encoded import Encoded, read, write  # noqa: E402
from network import Adapter, Network  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "base.gguf", tied=True)


def adapter_of(seed: int, base: Path) -> dict:
    torch.manual_seed(seed)
    network = Network(base, Adapter(4, 8.0))
    found = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    return {name: m + 0.2 * torch.randn_like(m) for name, m in found.items()}


def products(pairs: dict) -> dict[str, np.ndarray]:
    return {name: b @ a for name, (a, b) in pairs.items()}


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_the_network_is_what_llama_cpp_computes_with_the_exported_adapter(tmp_path, arch):
    base = write_tiny_llama(tmp_path / "base.gguf", tied=arch == "llama", arch=arch)
    adapter = adapter_of(1, base)
    export.write_adapter(export.halves(adapter), 8.0, tmp_path / "adapter.gguf", base=base)
    network = Network(base, Adapter(4, 8.0), dtype=torch.float32)
    network.load_state_dict(adapter, strict=False)
    ids = [[5, 20, 7, 90, 33], [60, 61, 2, 8, 9]]
    with torch.no_grad():
        ours = network(torch.tensor(ids), torch.tensor([4, 7])).log_softmax(-1).numpy()
    np.testing.assert_allclose(ours[0], fused(network, ids[0])[0], atol=1e-3)
    backend = open_backend(base, RuntimeOptions(context=64, threads=1, lora=tmp_path / "adapter.gguf", kv_cache="f32"))
    theirs = backend.logprobs([Prefix(tuple(ids[0])), Prefix(tuple(ids[1][:3]))])
    plain = open_backend(base, RuntimeOptions(context=64, threads=1)).logprobs([Prefix(tuple(ids[0]))])
    backend.close()
    # llama.cpp multiplies with the adapter in float16, of 11 bits: the rest is a small part of what the adapter does.
    assert 20 * np.abs(ours - theirs).max() < np.abs(plain[0] - theirs[0]).max()


def fused(network: Network, ids: list[int]) -> np.ndarray:
    """What the network computes by the kernels that it takes on a GPU."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(network_module, "_attention", network_module._fused_attention)
        return network(torch.tensor([ids]), torch.tensor([len(ids) - 1])).log_softmax(-1).numpy()


def test_the_average_of_runs_is_that_of_their_products(base):
    one, two = (export.halves(adapter_of(seed, base)) for seed in (1, 2))
    for name, found in products(export.soup([one, one], [0.5, 0.5])).items():
        np.testing.assert_allclose(found, products(one)[name], atol=1e-5)
    mean = {name: 0.25 * products(one)[name] + 0.75 * products(two)[name] for name in one}
    for name, (a, b) in export.soup([one, two], [0.25, 0.75]).items():
        assert a.shape == one[name][0].shape and b.shape == one[name][1].shape
        # Of all matrices of that rank the singular value decomposition's is the nearest.
        u, s, v = np.linalg.svd(mean[name])
        np.testing.assert_allclose(b @ a, (u[:, :4] * s[:4]) @ v[:4], atol=1e-4)


def test_an_exported_adapter_is_one_to_go_on_from(base, tmp_path):
    adapter = adapter_of(1, base)
    export.write_adapter(export.halves(adapter), 8.0, tmp_path / "adapter.gguf", base=base)
    alpha, pairs = export.load(tmp_path / "adapter.gguf")
    assert alpha == 8.0 and pairs.keys() == export.halves(adapter).keys()
    for name, matrix in train.begin_with(tmp_path / "adapter.gguf").items():
        torch.testing.assert_close(matrix, adapter[name], atol=2e-3, rtol=1e-3)  # float16


def rows_of(n: int) -> Encoded:
    dice, tokens = random.Random(0), []
    for i in range(n):
        prompt = [dice.randrange(10, 80) for _ in range(dice.randint(3, 9))]
        tokens.append([*prompt, *((81, 11, 12) if i % 2 == 0 else (82, 13, 12))])
    unsafe = np.arange(n) % 2 == 0
    return Encoded(
        ids=np.concatenate([np.asarray(t, np.int32) for t in tokens]),
        ends=np.cumsum([len(t) for t in tokens]),
        answers=np.full(n, 2, np.int32),
        verdict=np.ones(n, np.int32),
        unsafe=unsafe,
        open=np.zeros(n, bool),
        noise=np.zeros(n, np.float32),
        sources=np.where(np.arange(n) % 6 == 0, "rare", "here"),
        safe_id=13,
        unsafe_id=11,
    )


@pytest.mark.parametrize("seen", [False, True])
def test_a_run_learns_and_goes_on_where_it_was_stopped(base, tmp_path, monkeypatch, seen):
    settings = train.Settings(rank=4, batch_tokens=60, learning_rate=0.01, average=0.5, seen=seen)
    rows, kept = rows_of(120), {}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(train, "save", lambda *args: None)
    train.train(rows, rows, range(120), base, train.Run(tmp_path / "whole", settings), {})
    monkeypatch.undo()
    calls = 0

    def stop(logits, batch, settings, real=train.loss_of):
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt
        return real(logits, batch, settings)

    ticks = iter(range(0, 10**9, 400))
    monkeypatch.setattr(train.time, "time", lambda: next(ticks))  # a checkpoint at every step
    monkeypatch.setattr(train, "loss_of", stop)
    with pytest.raises(KeyboardInterrupt):
        train.train(rows, rows, range(120), base, train.Run(tmp_path / "stopped", settings), {})
    assert (tmp_path / "stopped" / "checkpoint.pt").exists()
    calls = 100
    train.train(rows, rows, range(120), base, train.Run(tmp_path / "stopped", settings), {})
    for name in ("whole", "stopped"):
        kept[name] = torch.load(tmp_path / name / "adapter.pt", weights_only=True)["adapter"]
    for name, matrix in kept["whole"].items():
        torch.testing.assert_close(kept["stopped"][name], matrix)
    network = Network(base, Adapter(4, 32.0))
    before = train.figures_of(train.margins(network, rows), rows.unsafe)
    network.load_state_dict(kept["whole"], strict=False)
    margin = train.margins(network, rows)
    assert train.figures_of(margin, rows.unsafe)["auroc"] > 0.9 > before["auroc"]
    assert train.by_source(margin, rows)["rare"][0] == 20
    with np.load(tmp_path / "whole" / "val.npz") as found:  # what a run keeps is what its adapter says
        np.testing.assert_allclose(found["margin"], margin, atol=0.3)


def test_encoded_rows_are_read_as_they_were_written(tmp_path):
    rows = rows_of(7)
    write(rows, tmp_path / "rows.npz")
    again = read(tmp_path / "rows.npz")
    assert (again.safe_id, again.unsafe_id, len(again)) == (13, 11, 7)
    for i in range(7):
        assert again.row(i).tolist() == rows.row(i).tolist()


def test_a_balanced_run_sees_rare_sources_more_often():
    rows, settings = rows_of(600), train.Settings(balance=1.0, epochs=2.0)
    even = train.drawn(rows, range(600), settings, random.Random(0))
    plain = train.drawn(rows, range(600), train.Settings(epochs=2.0), random.Random(0))
    rare = rows.sources == "rare"
    assert len(plain) == 1200 and rare[plain].mean() == pytest.approx(1 / 6)
    assert rare[even].mean() == pytest.approx(0.5, abs=0.05) and len(even) == pytest.approx(1200, abs=60)


def test_batches_of_a_given_shape_are_all_rows_and_what_they_are_filled_up_with_weighs_nothing(base):
    rows, settings = rows_of(120), train.Settings(batch_tokens=320)
    plan = train.filled(rows, range(120), settings)
    assert sorted(i for batch in plan for i in batch) == list(range(120))
    torch.manual_seed(3)
    network = Network(base, Adapter(4, 8.0), dtype=torch.float32)
    network.load_state_dict(adapter_of(3, base), strict=False)
    for rows_there in (plan[0], plan[-1][:1]):
        shape = train.shape_of(rows, rows_there, settings)
        found = {}
        for filled_up in (None, shape):
            batch = train.stack(rows, rows_there, settings, "cpu", filled_up)
            network.zero_grad()
            loss = train.backward(network, batch, settings)
            found[filled_up] = loss, [p.grad.clone() for p in network.parameters() if p.requires_grad]
        assert batch.ids.shape == (shape.rows, shape.width) and len(batch.places) == shape.places
        torch.testing.assert_close(found[None], found[shape], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("tokens", "width"), [(1, 32), (32, 32), (33, 48), (1024, 1024), (1025, 1536), (1499, 1536)])
def test_a_width_holds_its_row(tokens, width):
    assert train.width_of(tokens) == width


def test_a_smoothed_verdict_is_least_dear_at_its_target():
    batch = train.stack(rows_of(1), [0], train.Settings(smoothing=0.25), "cpu")

    def loss(p: float) -> float:
        logits = torch.full((2, 100), -30.0)
        logits[0, 11], logits[0, 13], logits[1, 12] = np.log(p), np.log(1 - p), 0.0
        return train.loss_of(logits, batch, train.Settings(smoothing=0.25)).item()

    assert min((loss(p), p) for p in np.arange(0.05, 1, 0.05))[1] == pytest.approx(0.75)


def test_rows_are_the_same_for_a_seed_and_unlike_what_is_evaluated():
    def drawn(seed: int) -> list[dict]:
        dice = random.Random(seed)
        return [synthetic.draw(dice) for _ in range(500)]

    rows = drawn(0)
    assert rows == drawn(0) != drawn(1)
    assert {label for r in rows for label in r["labels"]} == {f"S{i}" for i in range(1, 15)} - {
        "S4"
    }  # of S4 nothing is written
    assert 0.3 < np.mean([not r["labels"] for r in rows]) < 0.7
    foreign = rows[7]["text"].upper() + "!"
    kept = data.unlike(data.unique(rows), [foreign])
    assert data.plain(foreign) not in {data.plain(r["text"]) for r in kept}
    assert len(kept) > 0.9 * len(data.unique(rows))
    assert all("{" not in r["text"] for r in rows)  # every slot is filled


def test_a_line_that_is_no_row_of_a_contrast_is_named(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("# remark\n- | Kill the lights.\nS1,S9 | Kill\\nthem all.\n\n\n- | Alone.\n", encoding="utf-8")
    first, second = contrasts.read(path)
    assert [r["labels"] for r in first] == [[], ["S1", "S9"]] and first[1]["text"] == "Kill\nthem all."
    assert second == [{"text": "Alone.", "labels": [], "source": "contrast-some", "complete": True}]
    for line in ("S15 | a b", "S1 |a b", "S9,S1 | a b", "S1,S1 | a b", "-| a b", "- | a | b", "a b"):
        path.write_text(f"- | fine\n{line}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"some\.txt:2: "):
            contrasts.read(path)


@pytest.mark.parametrize("folder", [contrasts.FOLDER, contrasts.KEPT])
def test_every_contrast_has_both_sides(folder):
    found = contrasts.read_all(folder)
    assert len(found) > 100
    for contrast in found:
        assert {bool(row["labels"]) for row in contrast} == {True, False}, contrast[0]["text"]


def test_no_kept_contrast_is_trained_on():
    trained, kept = (
        {data.plain(row["text"]) for row in data.rows_of(folder)} for folder in (contrasts.FOLDER, contrasts.KEPT)
    )
    assert not trained & kept


words = st.lists(st.sampled_from(["kill", "the", "lights", "in", "a", "long", "dark", "hall"]), max_size=12).map(
    " ".join
)


@given(st.lists(words, max_size=6), st.lists(words, min_size=1, max_size=6), st.sampled_from([0.35, 0.5, 0.6, 1.0]))
def test_what_is_like_a_foreign_text_is_found_as_by_comparing_all(texts, foreign, limit):
    def like(a: str, b: str) -> bool:
        a, b = data.grams(a), data.grams(b)
        return len(a & b) >= limit * len(a | b)

    kept = data.unlike([{"text": text} for text in texts], foreign, limit)
    assert [row["text"] for row in kept] == [t for t in texts if not any(like(t, f) for f in foreign)]
