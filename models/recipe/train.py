"""Trains an adapter: LoRA on every linear layer of the base model, on rows that `data.py` made and `encode.py` encoded.

    python models/recipe/train.py ROWS.npz --val VAL.npz --out RUN [--base BASE.gguf] [--device cuda]
    python models/recipe/train.py ROWS.npz --val VAL.npz --out RUN          # again: goes on where it was

RUN gets log.jsonl, checkpoint.pt (to go on from) and, at the end, adapter.pt for `export.py`, and val.npz: the margin
of each row of VAL.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from encoded import Encoded, read
from network import Adapter, Network
from sklearn.metrics import average_precision_score, roc_auc_score

PAD = 0
# Of batches of a given shape, in tokens; behind the last one every multiple of 512.
WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclass(frozen=True)
class Settings:
    """What a run depends on besides its rows. A guard's `config.toml` has the values of its adapter."""

    seed: int = 1
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0  # of what the adapter sees
    learning_rate: float = 1e-3
    warmup: float = 0.03  # of all steps
    floor: float = 0.02  # of the learning rate, at the end of the cosine
    batch_tokens: int = 1400  # padded prompt and answer tokens a step
    epochs: float = 1.0  # how many rows are drawn, over the rows there are
    balance: float = 0.0  # 0: every row as likely; 1: every source as likely
    label_weight: float = 1.0  # of the tokens after the verdict, against the verdict's
    stop_weight: float = 0.5  # of "no further label" behind one label from a source that gives only one
    smoothing: float = 0.02  # of the verdict's target
    noise: float = 1.0  # times a source's share of wrong labels (encode.py), added to the smoothing
    focus: float = 0.0  # exponent of (1 - p) in the verdict's loss: 0 is cross-entropy, more is focal loss
    average: float = 0.998  # decay of the moving average of the adapter, which is what is kept
    seen: bool = False  # know the rows' tokens alone: a large vocabulary costs as much as the model


@dataclass(frozen=True)
class Batch:
    """Rows side by side.

    ids      (n, time), padded on the right to a multiple of 8
    places   (m,) indices into the flattened ids
    targets  (m,) the token after each place
    weights  (m,) of its loss
    firsts   (n,) where in `places` each row's verdict begins
    others   (n,) first token of the other verdict
    wrong    (n,) share of the verdict's target that the other verdict has
    count    () how many rows these are, float: in a batch of a given Shape what is left over is padding, of weight 0
    """

    ids: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    firsts: torch.Tensor
    others: torch.Tensor
    wrong: torch.Tensor
    count: torch.Tensor


@dataclass(frozen=True)
class Shape:
    """What a batch is filled up to: so many rows of `width` tokens, and `places` for the tokens of their answers."""

    rows: int
    width: int
    places: int


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="the base model's GGUF file [default: of the installed package]")
    parser.add_argument("--config", type=Path, help="a guard's config.toml")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, over config's")
    parser.add_argument("--init", type=Path, help="go on from this adapter.pt or adapter.gguf, as a new run")
    parser.add_argument("--limit", type=int, help="train on the first N rows only, a shortened run")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true", help="where there is no C++ compiler")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    given = tomllib.loads(args.config.read_text()) if args.config else {}
    given |= tomllib.loads("\n".join(args.set))
    settings = Settings(**given)
    args.out.mkdir(parents=True, exist_ok=True)
    rows, val = read(args.rows), read(args.val)
    init = begin_with(args.init) if args.init else {}
    if args.base is None:
        from export import DEFAULT, find_base

        args.base = find_base(DEFAULT)
    run = Run(args.out, settings, args.device, compiled=not args.no_compile)
    train(rows, val, range(min(len(rows), args.limit or len(rows))), args.base, run, init)


def begin_with(path: Path) -> dict[str, torch.Tensor]:
    """The matrices of a run's adapter.pt, or of an exported adapter."""
    from export import load

    return {
        f"blocks.{layer}.{part}.{half}": torch.tensor(matrix)
        for tensor, pair in load(path)[1].items()
        for _, layer, part, _ in [tensor.split(".")]
        for half, matrix in zip("ab", pair, strict=True)
    }


@dataclass(frozen=True)
class Run:
    """Where a run goes, and how it computes."""

    out: Path
    settings: Settings
    device: str = "cpu"
    compiled: bool = False


def train(
    rows: Encoded, val: Encoded, among: Sequence[int], base: Path, run: Run, init: Mapping[str, torch.Tensor]
) -> None:
    """One run over rows `among` all, from a new adapter or from `init`."""
    settings = run.settings
    torch.manual_seed(settings.seed)
    network = Network(base, Adapter(settings.rank, settings.alpha, settings.dropout))
    if settings.seen:
        seen = np.unique(np.concatenate([rows.ids, val.ids]))
        rows, val = renumbered(rows, seen), renumbered(val, seen)
        network.embedding, network.output = (m[torch.from_numpy(seen)] for m in (network.embedding, network.output))
    if unknown := network.load_state_dict(init, strict=False).unexpected_keys:
        raise SystemExit(f"--init has matrices that this network has not: {', '.join(unknown[:3])}")
    network.to(run.device)
    if run.compiled:
        for block in network.blocks:  # one by one: all are the same program, compiled once
            block.compile(dynamic=True)
    parameters = [p for p in network.parameters() if p.requires_grad]
    fused = run.device.startswith("cuda")
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, (0.9, 0.98), weight_decay=0.0, fused=fused)
    average = [p.detach().clone() for p in parameters]
    rng = random.Random(settings.seed)
    order = drawn(rows, among, settings, rng)
    captured = Captured(network, parameters, settings) if fused else None
    plan = filled(rows, order, settings) if captured else batches(rows, order, settings, rng)
    checkpoint, step = run.out / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["settings"] != asdict(settings) or saved["steps"] != len(plan):
            raise SystemExit(f"{checkpoint} is of a run with other settings or rows; remove it, or give another --out")
        network.load_state_dict(saved["network"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        average, step = saved["average"], saved["step"]
    with (run.out / "log.jsonl").open("a", encoding="utf-8") as log:

        def note(entry: dict) -> None:
            print(json.dumps(entry), flush=True)
            log.write(json.dumps(entry) + "\n")
            log.flush()

        note({"rows": len(among), "steps": len(plan), "from": step, "settings": asdict(settings)})
        began, losses, tokens, saved_at = time.time(), [], 0, time.time()
        while step < len(plan):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate(step / len(plan), settings)
            if captured:
                batch = stack(rows, plan[step], settings, "cpu", shape_of(rows, plan[step], settings))
                loss = captured(batch)
            else:
                batch = stack(rows, plan[step], settings, run.device)
                loss = backward(network, batch, settings)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=captured is None)
            decay = min(settings.average, (step + 1) / (step + 10))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
            step += 1
            losses.append(loss)
            tokens += batch.ids.numel()
            if step % 50 == 0 or step == len(plan):
                mean = round(float(torch.stack(losses).mean()), 4)
                note({"step": step, "loss": mean, "tokens/s": round(tokens / (time.time() - began))})
                losses, tokens, began = [], 0, time.time()
            if time.time() - saved_at > 300:
                save(checkpoint, network, optimizer, average, step, len(plan), settings)
                saved_at = time.time()
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.data.copy_(mean)
        adapter = {name: p.detach().cpu().clone() for name, p in network.named_parameters() if p.requires_grad}
        torch.save({"adapter": adapter, "settings": asdict(settings)}, run.out / "adapter.pt")
        checkpoint.unlink(missing_ok=True)
        margin = margins(network, val, run.device)
        np.savez_compressed(run.out / "val.npz", margin=margin, unsafe=val.unsafe, sources=val.sources)
        note({"val": figures_of(margin, val.unsafe) | {"label nll": label_nll(network, val, run.device)}})
        note({"by source": by_source(margin, val)})


def renumbered(rows: Encoded, seen: np.ndarray) -> Encoded:
    """Rows whose tokens are counted among those `seen`, ascending."""
    at = {name: int(np.searchsorted(seen, getattr(rows, name))) for name in ("safe_id", "unsafe_id")}
    return replace(rows, ids=np.searchsorted(seen, rows.ids).astype(np.int32), **at)


def drawn(rows: Encoded, among: Sequence[int], settings: Settings, rng: random.Random) -> list[int]:
    """The rows that a run sees, in random order: `epochs` times as many as there are, sources evened by `balance`."""
    names, counts = np.unique(rows.sources[list(among)], return_counts=True)
    size = dict(zip(names, counts, strict=True))
    weight = np.array([size[rows.sources[i]] ** -settings.balance for i in among])
    want = weight * (settings.epochs * len(among) / weight.sum())
    often = np.floor(want + np.array([rng.random() for _ in among])).astype(int)
    order = [i for i, n in zip(among, often, strict=True) for _ in range(n)]
    rng.shuffle(order)
    return order


def batches(rows: Encoded, order: Sequence[int], settings: Settings, rng: random.Random) -> list[list[int]]:
    """Rows in random batches of rows of like length."""
    length = np.diff(rows.ends, prepend=0)
    group = max(2000, settings.batch_tokens)  # rows that are sorted together
    found: list[list[int]] = []
    for at in range(0, len(order), group):
        batch: list[int] = []
        for i in sorted(order[at : at + group], key=lambda i: length[i]):
            if batch and (len(batch) + 1) * length[i] > settings.batch_tokens:
                found.append(batch)
                batch = []
            batch.append(i)
        found.append(batch)
    rng.shuffle(found)
    return found


def width_of(tokens: int) -> int:
    """The width of the batches that a row of so many tokens goes into, of those of a given shape."""
    return next((w for w in WIDTHS if w >= tokens), -(-tokens // 512) * 512)


def shape_of(rows: Encoded, batch: Sequence[int], settings: Settings) -> Shape:
    """What a batch of `filled` is filled up to."""
    width = width_of(max(len(rows.row(i)) for i in batch) - 1)
    n = max(1, settings.batch_tokens // width)
    return Shape(n, width, max(80, 8 * n))


def filled(rows: Encoded, order: Sequence[int], settings: Settings) -> list[list[int]]:
    """Rows in batches of a few shapes only, in the order in which the batches are full."""
    found: list[list[int]] = []
    begun: dict[int, list[int]] = defaultdict(list)
    used: Counter[int] = Counter()  # places of the batch that is begun
    for i in order:
        shape = shape_of(rows, [i], settings)
        at, answer = shape.width, int(rows.answers[i])
        # The last place is kept free: what is left over points to it.
        if len(begun[at]) == shape.rows or used[at] + answer >= shape.places:
            found.append(begun[at])
            begun[at], used[at] = [], 0
        begun[at].append(i)
        used[at] += answer
    return found + [batch for batch in begun.values() if batch]


def stack(rows: Encoded, batch: Sequence[int], settings: Settings, device: str, shape: Shape | None = None) -> Batch:
    """A batch on the device, of a given shape or of its own."""
    tokens = [rows.row(i) for i in batch]
    width = shape.width if shape else -(-max(len(t) - 1 for t in tokens) // 8) * 8
    ids = np.full((shape.rows if shape else len(batch), width), PAD, np.int64)
    places, targets, weights, firsts, others, wrong = [], [], [], [], [], []
    for n, i in enumerate(batch):
        row, answer, verdict = tokens[n], int(rows.answers[i]), int(rows.verdict[i])
        ids[n, : len(row) - 1] = row[:-1]
        firsts.append(len(places))
        start = len(row) - answer
        places += range(n * width + start - 1, n * width + len(row) - 1)
        targets += row[start:].tolist()
        found = [1.0] * verdict + [settings.label_weight] * (answer - verdict)
        if rows.open[i]:
            found[-1] *= settings.stop_weight
        weights += found
        others.append(rows.safe_id if rows.unsafe[i] else rows.unsafe_id)
        wrong.append(settings.smoothing + settings.noise * float(rows.noise[i]))
    if shape:
        for values in (places, targets, weights):
            values += [0] * (shape.places - len(values))
        firsts += [shape.places - 1] * (shape.rows - len(batch))
        for values in (others, wrong):
            values += [0] * (shape.rows - len(batch))
    whole = partial(torch.tensor, device=device, dtype=torch.int64)
    real = partial(torch.tensor, device=device, dtype=torch.float32)
    return Batch(
        ids=whole(ids),
        places=whole(places),
        targets=whole(targets),
        weights=real(weights),
        firsts=whole(firsts),
        others=whole(others),
        wrong=real(wrong),
        count=real(len(batch)),
    )


def backward(network: Network, batch: Batch, settings: Settings) -> torch.Tensor:
    """The loss, its gradients added to those of the parameters."""
    loss = loss_of(network(batch.ids, batch.places), batch, settings)
    loss.backward()
    return loss.detach()


class Captured:
    """`backward` on a GPU as CUDA graphs, one for each shape of batch.

    Launched one by one, kernels as small as these take longer to launch than to run.
    """

    def __init__(self, network: Network, parameters: Sequence[torch.nn.Parameter], settings: Settings) -> None:
        self.network, self.settings = network, settings
        self.graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Batch, torch.Tensor]] = {}
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)  # the graphs add to these very tensors
        self.gradients = [p.grad for p in parameters]

    def __call__(self, batch: Batch) -> torch.Tensor:
        """As `backward`; the batch lies in the host's memory. Gradients must be zero before."""
        if batch.ids.shape not in self.graphs:
            self.graphs[batch.ids.shape] = self._capture(batch)
        graph, there, loss = self.graphs[batch.ids.shape]
        for name in Batch.__dataclass_fields__:
            getattr(there, name).copy_(getattr(batch, name).pin_memory(), non_blocking=True)
        graph.replay()
        return loss.clone()  # the next replay writes over it

    def _capture(self, batch: Batch) -> tuple[torch.cuda.CUDAGraph, Batch, torch.Tensor]:
        there = Batch(*(getattr(batch, name).cuda() for name in Batch.__dataclass_fields__))
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # compiles, and lets the libraries choose their kernels
                backward(self.network, there, self.settings)
        torch.cuda.current_stream().wait_stream(aside)
        torch._foreach_zero_(self.gradients)
        graph, first = torch.cuda.CUDAGraph(), next(iter(self.graphs.values()), None)
        # One pool for all: each replay is over, and its loss copied, before the next begins.
        with torch.cuda.graph(graph, pool=first[0].pool() if first else None):
            loss = backward(self.network, there, self.settings)
        return graph, there, loss


def loss_of(logits: torch.Tensor, batch: Batch, settings: Settings) -> torch.Tensor:
    """Mean over rows of the weighted cross-entropy of their answers, in nats."""
    logp = logits.log_softmax(-1)
    nll = -logp.gather(1, batch.targets[:, None])[:, 0]
    right, other = -nll[batch.firsts], logp[batch.firsts, batch.others]
    mixed = -(1 - batch.wrong) * right - batch.wrong * other
    if settings.focus:
        # Lin et al. 2017, with the smoothed target: what is sure and right counts less.
        mixed = mixed * (1 - right.exp() + batch.wrong).clamp(max=1.0).detach() ** settings.focus
    nll = nll.index_copy(0, batch.firsts, mixed)
    return (nll * batch.weights).sum() / batch.count


@torch.no_grad()
def margins(network: Network, rows: Encoded, device: str = "cpu") -> np.ndarray:
    """(n,) log P(unsafe) - log P(safe) at the verdict's first token."""
    network.eval()
    found, settings = np.zeros(len(rows)), Settings()
    for part in _by_length(rows, range(len(rows))):
        batch = stack(rows, part, settings, device)
        logits = network(batch.ids, batch.places[batch.firsts])
        found[part] = (logits[:, rows.unsafe_id] - logits[:, rows.safe_id]).cpu().numpy()
    network.train()
    return found


@torch.no_grad()
def label_nll(network: Network, rows: Encoded, device: str = "cpu") -> float:
    """Mean nats of the labels of the unsafe rows, given the verdict."""
    network.eval()
    total, unsafe, settings = 0.0, np.flatnonzero(rows.unsafe), Settings()
    for part in _by_length(rows, unsafe):
        batch = stack(rows, part, settings, device)
        logp = network(batch.ids, batch.places).log_softmax(-1)
        nll = -logp.gather(1, batch.targets[:, None])[:, 0]
        verdict = torch.cat([batch.firsts + k for k in range(int(rows.verdict[part[0]]))])
        total += (nll.sum() - nll[verdict].sum()).item()
    network.train()
    return total / max(1, len(unsafe))


def _by_length(rows: Encoded, among: Sequence[int], tokens: int = 16000) -> list[list[int]]:
    return batches(rows, list(among), Settings(batch_tokens=tokens), random.Random(0))


def by_source(margin: np.ndarray, val: Encoded) -> dict[str, list[float]]:
    """Source → [rows, accuracy at P = 0.5]."""
    right = (margin > 0) == val.unsafe
    return {
        str(source): [int(here.sum()), round(float(right[here].mean()), 3)]
        for source in np.unique(val.sources)
        for here in [val.sources == source]
    }


def figures_of(margin: np.ndarray, unsafe: np.ndarray) -> dict[str, float]:
    """Of the verdict."""
    safe = np.sort(margin[~unsafe])
    cut = safe[int(0.95 * len(safe))]
    return {
        "auroc": float(roc_auc_score(unsafe, margin)),
        "auprc": float(average_precision_score(unsafe, margin)),
        "false positives at 0": float((safe > 0).mean()),
        "recall at 0": float((margin[unsafe] > 0).mean()),
        "recall at 5 % false positives": float((margin[unsafe] > cut).mean()),
    }


def rate(done: float, settings: Settings) -> float:
    """Share of the learning rate: a linear rise, then half a cosine."""
    if done < settings.warmup:
        return (done + 1e-3) / (settings.warmup + 1e-3)
    at = (done - settings.warmup) / (1 - settings.warmup)
    return settings.floor + (1 - settings.floor) * 0.5 * (1 + math.cos(math.pi * at))


def save(
    path: Path,
    network: Network,
    optimizer: torch.optim.Optimizer,
    average: list,
    step: int,
    steps: int,
    settings: Settings,
) -> None:
    """Write a checkpoint whole, or leave the last one."""
    half = path.with_suffix(".part")
    adapter = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    torch.save(
        {
            "network": adapter,
            "optimizer": optimizer.state_dict(),
            "average": average,
            "step": step,
            "steps": steps,
            "settings": asdict(settings),
        },
        half,
    )
    half.replace(path)


if __name__ == "__main__":
    main()
