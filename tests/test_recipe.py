"""The recipe of the built-in guard, on a tiny model: torch computes what llama.cpp does, runs go on where they were."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama

from edgeguard.backend import Prefix, RuntimeOptions
from edgeguard.backends import open_backend

torch = pytest.importorskip("torch")
FOLDER = Path(__file__).parents[1] / "models" / "recipe"
sys.path.insert(0, str(FOLDER))

import data  # noqa: E402
import export  # noqa: E402
import synthetic  # noqa: E402
import train  # noqa: E402
from network import Network  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "base.gguf", tied=True)


def adapter_of(seed: int, base: Path) -> dict:
    torch.manual_seed(seed)
    network = Network(base, rank=4, alpha=8.0)
    found = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    return {name: m + 0.2 * torch.randn_like(m) for name, m in found.items()}


def products(pairs: dict) -> dict[str, np.ndarray]:
    return {name: b @ a for name, (a, b) in pairs.items()}


def test_the_network_is_what_llama_cpp_computes_with_the_exported_adapter(base, tmp_path):
    adapter = adapter_of(1, base)
    export.write_adapter(export.halves(adapter), 8.0, tmp_path / "adapter.gguf", base=base)
    network = Network(base, rank=4, alpha=8.0, dtype=torch.float32)
    network.load_state_dict(adapter, strict=False)
    ids = [[5, 20, 7, 90, 33], [60, 61, 2, 8, 9]]
    with torch.no_grad():
        ours = network(torch.tensor(ids), torch.tensor([4, 7])).log_softmax(-1).numpy()
    backend = open_backend(base, RuntimeOptions(context=64, threads=1, lora=tmp_path / "adapter.gguf", kv_cache="f32"))
    theirs = backend.logprobs([Prefix(tuple(ids[0])), Prefix(tuple(ids[1][:3]))])
    plain = open_backend(base, RuntimeOptions(context=64, threads=1)).logprobs([Prefix(tuple(ids[0]))])
    backend.close()
    # llama.cpp multiplies with the adapter in float16, of 11 bits: the rest is a small part of what the adapter does.
    assert 20 * np.abs(ours - theirs).max() < np.abs(plain[0] - theirs[0]).max()


def test_the_average_of_runs_is_that_of_their_products(base):
    one, two = (export.halves(adapter_of(seed, base)) for seed in (1, 2))
    for name, found in products(export.soup([one, one])).items():
        np.testing.assert_allclose(found, products(one)[name], atol=1e-5)
    mean = {name: (products(one)[name] + products(two)[name]) / 2 for name in one}
    for name, (a, b) in export.soup([one, two]).items():
        assert a.shape == one[name][0].shape and b.shape == one[name][1].shape
        # Of all matrices of that rank the singular value decomposition's is the nearest.
        u, s, v = np.linalg.svd(mean[name])
        np.testing.assert_allclose(b @ a, (u[:, :4] * s[:4]) @ v[:4], atol=1e-4)


def rows_of(n: int) -> list[train.Row]:
    dice, found = random.Random(0), []
    for i in range(n):
        prompt, unsafe = [dice.randrange(10, 80) for _ in range(dice.randint(3, 9))], i % 2 == 0
        answer = [11, 12] if unsafe else [13, 12]
        ids = [*prompt, (81 if unsafe else 82), answer[0]]
        found.append(train.Row(ids, [len(ids) - 2, len(ids) - 1], answer, [1.0, 1.0], unsafe, "here"))
    return found


def test_a_run_learns_and_goes_on_where_it_was_stopped(base, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "default_base", lambda: base)
    settings = train.Settings(rank=4, batch_tokens=60, learning_rate=0.01, average=0.5)
    rows, kept = rows_of(120), {}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(train, "save", lambda *args: None)
    train.train(rows, rows[:20], settings, tmp_path / "whole", init={}, compiled=False)
    monkeypatch.undo()
    monkeypatch.setattr(train, "default_base", lambda: base)

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
        train.train(rows, rows[:20], settings, tmp_path / "stopped", init={}, compiled=False)
    assert (tmp_path / "stopped" / "checkpoint.pt").exists()
    calls = 100
    train.train(rows, rows[:20], settings, tmp_path / "stopped", init={}, compiled=False)
    for name in ("whole", "stopped"):
        kept[name] = torch.load(tmp_path / name / "adapter.pt", weights_only=True)["adapter"]
    for name, matrix in kept["whole"].items():
        torch.testing.assert_close(kept["stopped"][name], matrix)
    network = Network(base, rank=4, alpha=32.0)
    before = train.validate(network, rows)
    network.load_state_dict(kept["whole"], strict=False)
    after = train.validate(network, rows)
    assert after["auroc"] > 0.9 > before["auroc"]


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
