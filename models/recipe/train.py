"""Trains the adapter: LoRA on every linear layer of the base model, on rows that `data.py` made.

    python models/recipe/train.py ROWS.jsonl --val VAL.jsonl --out RUN
    python models/recipe/train.py ROWS.jsonl --val VAL.jsonl --out RUN          # again: goes on where it was

RUN gets log.jsonl, checkpoint.pt (to go on from) and, at the end, adapter.pt for `export.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from export import find_base as default_base
from network import Network
from sklearn.metrics import average_precision_score, roc_auc_score

from edgeguard.backend import RuntimeOptions
from edgeguard.backends import open_backend
from edgeguard.profile import load_profile
from edgeguard.prompt import Prompter, compile_prompt
from edgeguard.rows.shapes import make_record

FOLDER = Path(__file__).parents[1] / "edgeguard-135m"
PAD = 0


@dataclass(frozen=True)
class Settings:
    """What a run depends on besides its rows. `config.toml` has the values of the shipped adapter."""

    seed: int = 1
    rank: int = 16
    alpha: float = 32.0
    learning_rate: float = 1e-3
    warmup: float = 0.03  # of all steps
    floor: float = 0.02  # of the learning rate, at the end of the cosine
    batch_tokens: int = 1400  # padded prompt and answer tokens a step
    longest: int = 320  # tokens of a row; of longer ones the beginning and the end are kept
    label_weight: float = 1.0  # of the tokens after the verdict, against the verdict's
    stop_weight: float = 0.5  # of "no further label" behind one label from a source that gives only one
    smoothing: float = 0.02  # of the verdict's target
    average: float = 0.998  # decay of the moving average of the adapter, which is what is kept


@dataclass(frozen=True)
class Row:
    """Token ids, and the places that are learned: target[i] is the token after place[i]."""

    ids: list[int]
    places: list[int]
    targets: list[int]
    weights: list[float]
    unsafe: bool
    source: str


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=FOLDER / "config.toml")
    parser.add_argument("--init", type=Path, help="go on from this run's adapter.pt, as a new run")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--limit", type=int, help="train on the first N rows only, a shortened run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true", help="where there is no C++ compiler")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    given = tomllib.loads(args.config.read_text()) if args.config.exists() else {}
    settings = Settings(**(given | ({} if args.seed is None else {"seed": args.seed})))
    args.out.mkdir(parents=True, exist_ok=True)
    prompter = open_prompter()
    rows = [encode(row, prompter, settings) for row in read_rows(args.rows)[: args.limit]]
    val = [encode(row, prompter, settings) for row in read_rows(args.val)]
    init = torch.load(args.init, weights_only=True)["adapter"] if args.init else {}
    train(rows, val, settings, args.out, init=init, compiled=not args.no_compile)


def open_prompter() -> Prompter:
    """The very prompts that edgeguard scores with."""
    backend = open_backend(default_base(), RuntimeOptions(context=512))  # stays open: the vocabulary belongs to it
    return compile_prompt(load_profile("edgeguard-135m"), None, backend.vocabulary)


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def encode(row: dict, prompter: Prompter, settings: Settings) -> Row:
    """A row as tokens; the answer in its canonical tokenisation."""
    encode_text = prompter.vocabulary.encode
    prompt = list(
        prompter.encode(make_record({k: v for k, v in row.items() if k in ("text", "prompt", "response")}).messages)
    )
    labels = sorted(row["labels"], key=lambda code: int(code[1:]))
    answer = [
        *encode_text("unsafe\n" + ",".join(labels) if labels else "safe"),
        prompter.vocabulary.control["<|im_end|>"],
    ]
    if (over := len(prompt) + len(answer) - settings.longest) > 0:
        middle = len(prompt) // 2
        prompt = prompt[: middle - over // 2] + prompt[middle - over // 2 + over :]
    verdict = len(encode_text("unsafe")) if labels else 1
    weights = [1.0] * verdict + [settings.label_weight] * (len(answer) - verdict)
    if len(labels) == 1 and not row.get("complete", False):
        weights[-1] *= settings.stop_weight
    places = list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
    return Row(prompt + answer[:-1], places, answer, weights, bool(labels), row.get("source", ""))


def batches(rows: Sequence[Row], settings: Settings, rng: random.Random) -> list[list[Row]]:
    """One pass over the rows in random batches of rows of like length."""
    order = list(rows)
    rng.shuffle(order)
    found: list[list[Row]] = []
    for at in range(0, len(order), 2000):
        batch: list[Row] = []
        for row in sorted(order[at : at + 2000], key=lambda row: len(row.ids)):
            if batch and (len(batch) + 1) * len(row.ids) > settings.batch_tokens:
                found.append(batch)
                batch = []
            batch.append(row)
        found.append(batch)
    rng.shuffle(found)
    return found


def stack(batch: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, time) ids padded on the right to a multiple of 8, and (m,) places in their flattened form."""
    width = -(-max(len(row.ids) for row in batch) // 8) * 8
    ids = torch.full((len(batch), width), PAD)
    for i, row in enumerate(batch):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
    return ids, torch.tensor([i * width + place for i, row in enumerate(batch) for place in row.places])


def loss_of(logits: torch.Tensor, batch: Sequence[Row], settings: Settings) -> torch.Tensor:
    """Mean over rows of the weighted cross-entropy of their answers, in nats."""
    targets = torch.tensor([t for row in batch for t in row.targets])
    weights = torch.tensor([w for row in batch for w in row.weights])
    logp = logits.log_softmax(-1)
    nll = -logp.gather(1, targets[:, None])[:, 0]
    if settings.smoothing:
        first = torch.tensor(np.cumsum([0] + [len(row.places) for row in batch[:-1]]))
        other = torch.tensor([row_pair(row)[1] for row in batch])
        smooth = -logp[first, other]
        nll = nll.index_add(0, first, settings.smoothing * (smooth - nll[first]))
    return (nll * weights).sum() / len(batch)


VERDICTS: dict[str, int] = {}  # "safe" and the first token of "unsafe"


def row_pair(row: Row) -> tuple[int, int]:
    """(the verdict's first token, the other verdict's)."""
    safe, unsafe = VERDICTS["safe"], VERDICTS["unsafe"]
    return (unsafe, safe) if row.unsafe else (safe, unsafe)


@torch.no_grad()
def margins(network: Network, rows: Sequence[Row]) -> np.ndarray:
    """(n,) log P(unsafe) - log P(safe) at the verdict's first token."""
    found = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    for at in range(0, len(order), 32):
        batch = [rows[i] for i in order[at : at + 32]]
        ids, _ = stack(batch)
        places = torch.tensor([i * ids.shape[1] + row.places[0] for i, row in enumerate(batch)])
        logits = network(ids, places)
        found[order[at : at + 32]] = (logits[:, VERDICTS["unsafe"]] - logits[:, VERDICTS["safe"]]).numpy()
    return found


@torch.no_grad()
def label_nll(network: Network, rows: Sequence[Row]) -> float:
    """Mean nats of the labels of the unsafe rows, given the verdict."""
    total, unsafe = 0.0, [row for row in rows if row.unsafe]
    for at in range(0, len(unsafe), 32):
        batch = sorted(unsafe, key=lambda row: len(row.ids))[at : at + 32]
        ids, places = stack(batch)
        logp = network(ids, places).log_softmax(-1)
        targets = torch.tensor([t for row in batch for t in row.targets])
        keep = torch.tensor([i >= 2 for row in batch for i in range(len(row.targets))])
        total += -logp.gather(1, targets[:, None])[keep, 0].sum().item()
    return total / max(1, len(unsafe))


def validate(network: Network, val: Sequence[Row], *, by_source: bool = False) -> dict:
    """Figures that a run is chosen by; the released figures come from `bench/guard.py`, through edgeguard."""
    margin, truth = margins(network, val), np.array([row.unsafe for row in val])
    safe = np.sort(margin[~truth])
    cut = safe[int(0.95 * len(safe))]
    figures = {
        "auroc": roc_auc_score(truth, margin),
        "auprc": average_precision_score(truth, margin),
        "false positives at 0": float((safe > 0).mean()),
        "recall at 0": float((margin[truth] > 0).mean()),
        "recall at 5 % false positives": float((margin[truth] > cut).mean()),
        "label nll": label_nll(network, val),
    }
    if by_source:
        groups: dict[str, list[int]] = defaultdict(list)
        for i, row in enumerate(val):
            groups[row.source].append(i)
        figures["accuracy by source"] = {
            source: [len(ix), round(float(((margin[ix] > 0) == truth[ix]).mean()), 3)]
            for source, ix in sorted(groups.items())
        }
    return figures


def train(
    rows: Sequence[Row],
    val: Sequence[Row],
    settings: Settings,
    out: Path,
    *,
    init: Mapping[str, torch.Tensor],
    compiled: bool,
) -> None:
    """One pass over the rows, from a new adapter or from `init`."""
    torch.manual_seed(settings.seed)
    VERDICTS.update(
        safe=next(r for r in rows if not r.unsafe).targets[0], unsafe=next(r for r in rows if r.unsafe).targets[0]
    )
    network = Network(default_base(), rank=settings.rank, alpha=settings.alpha)
    if unknown := network.load_state_dict(init, strict=False).unexpected_keys:
        raise SystemExit(f"--init has matrices that this network has not: {', '.join(unknown[:3])}")
    if compiled:
        for block in network.blocks:  # one by one: all 30 are the same program, compiled once
            block.compile(dynamic=True)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    average = [p.detach().clone() for p in parameters]
    plan = batches(rows, settings, random.Random(settings.seed))
    checkpoint, step = out / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["settings"] != asdict(settings) or saved["steps"] != len(plan):
            raise SystemExit(f"{checkpoint} is of a run with other settings or rows; remove it, or give another --out")
        network.load_state_dict(saved["network"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        average, step = saved["average"], saved["step"]
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:

        def note(entry: dict) -> None:
            print(json.dumps(entry), flush=True)
            log.write(json.dumps(entry) + "\n")
            log.flush()

        note({"rows": len(rows), "steps": len(plan), "from": step, "settings": asdict(settings)})
        began, losses, tokens, saved_at = time.time(), [], 0, time.time()
        while step < len(plan):
            batch = plan[step]
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate(step / len(plan), settings)
            ids, places = stack(batch)
            loss = loss_of(network(ids, places), batch, settings)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            decay = min(settings.average, (step + 1) / (step + 10))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
            step += 1
            losses.append(loss.item())
            tokens += ids.numel()
            if step % 50 == 0 or step == len(plan):
                note(
                    {
                        "step": step,
                        "loss": round(float(np.mean(losses)), 4),
                        "tokens/s": round(tokens / (time.time() - began)),
                    }
                )
                losses, tokens, began = [], 0, time.time()
            if time.time() - saved_at > 300:
                save(checkpoint, network, optimizer, average, step, len(plan), settings)
                saved_at = time.time()
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.data.copy_(mean)
        adapter = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
        torch.save({"adapter": adapter, "settings": asdict(settings)}, out / "adapter.pt")
        checkpoint.unlink(missing_ok=True)
        note({"val": validate(network, val, by_source=True)})


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
