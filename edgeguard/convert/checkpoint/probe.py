"""Whether a graph computes what the model does: some logits of both, held against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeguard.convert.checkpoint.surgery import UNKNOWN_GRAPH
from edgeguard.errors import ModelError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Probe:
    """Two rows of random tokens, read in two steps with padding on the right, and their logits everywhere.

    A graph that forgets its past, the mask, a token's position or a layer has logits that differ by nats.
    """

    def __init__(self, n_vocab: int) -> None:
        lengths = ((7, 5), (4, 8))  # tokens of each row in each step
        rng = np.random.default_rng(0)
        self.rows = [[rng.integers(0, n_vocab, n) for n in row] for row in lengths]

    def torch_logits(self, model: Any) -> Floats:
        """Each row alone, at once: (tokens, n_vocab)."""
        import torch

        with torch.inference_mode():
            rows = [model(torch.from_numpy(np.concatenate(row))[None]).logits[0] for row in self.rows]
        logits: Floats = torch.cat(rows).float().numpy()
        return logits

    def graph_logits(self, path: Path) -> Floats:
        """The same places, both rows together, the second step with the first one's keys and values."""
        session = open_session(path)
        past = _empty_past(session, len(self.rows))
        mask = np.zeros((len(self.rows), 0), np.int64)
        begin = np.zeros(len(self.rows), np.int64)
        found: list[list[Floats]] = [[] for _ in self.rows]
        for step in range(2):
            tokens = [row[step] for row in self.rows]
            lengths, width = [len(t) for t in tokens], max(map(len, tokens))
            ids = np.stack([np.pad(t, (0, width - len(t))) for t in tokens])
            mask = np.concatenate([mask, np.arange(width) < np.array(lengths)[:, None]], axis=1).astype(np.int64)
            places = np.concatenate([i * width + np.arange(n) for i, n in enumerate(lengths)])
            backwards: Ints = places[::-1].astype(np.int64)  # the order is the caller's
            inputs = {
                "input_ids": ids,
                "attention_mask": mask,
                "position_ids": begin[:, None] + np.arange(width),
                "positions": backwards,
                **past,
            }
            logits, *present = session.run(None, inputs)
            for i, part in enumerate(np.split(logits[::-1], np.cumsum(lengths)[:-1])):
                found[i].append(part)
            past, begin = dict(zip(past, present, strict=True)), begin + np.array(lengths)
        rows: Floats = np.concatenate([part for row in found for part in row])
        return rows

    def refuse_other(self, found: Floats, expected: Floats, limit: float | None) -> None:
        """Raise ModelError where logits are not finite, or further than `limit` from those expected, in nats."""
        if not np.isfinite(found).all():
            raise ModelError("the exported graph overflows: its logits are not finite; export with another type")
        difference = float(np.abs(found - expected).max())
        if limit is not None and not difference <= limit:
            raise ModelError(
                f"the exported graph computes something else: its logits differ by {difference:.2g} from torch's, "
                f"{limit:g} is allowed; take a GGUF file of the model"
            )


def open_session(path: Path) -> Any:
    """ONNX Runtime's session of a graph that takes what a cut one does. Raises ModelError for another."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {"input_ids", "attention_mask", "position_ids", "positions"}
    names = {port.name for port in session.get_inputs() if not port.name.startswith("past_key_values.")}
    if names != wanted:
        raise ModelError(f"the graph takes {sorted(names)}, {sorted(wanted)} are needed; {UNKNOWN_GRAPH}")
    return session


def _empty_past(session: Any, n_rows: int) -> dict[str, npt.NDArray[Any]]:
    """No keys and values yet, in the order in which the graph gives them back."""
    ports = {port.name: port for port in session.get_inputs()}
    past = {}
    for output in session.get_outputs()[1:]:
        port = ports[output.name.replace("present", "past_key_values", 1)]
        dtype = np.float16 if port.type == "tensor(float16)" else np.float32
        past[port.name] = np.zeros((n_rows, port.shape[1], 0, port.shape[3]), dtype)
    return past
