"""Scores a second, both runtimes side by side, and over the loop a user of Hugging Face would write.

    python bench/runtimes.py                      # about 10 minutes on 2 quiet cores; needs edgeguard[optimum]

The same records, each scored by every variant in turn, so that they share the machine's noise. The loop is optimum's
`ORTModelForCausalLM` on its own fp32 export of the same weights: greedy, the full prompt each time, logits kept.
"All three estimators" is one `marginal` exploration.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import common
import numpy as np

from edgeguard.backend import RuntimeOptions
from edgeguard.builtin import base_model
from edgeguard.formats.tokenizer import tokenizer_files
from edgeguard.guard import Guard, Search

GGUF = ("f32", "q8_0", "q4_0")
ONNX = ("onnx-fp32", "onnx-int8", "onnx-int4")
LIKE = dict(zip(ONNX, GGUF, strict=True))  # an ONNX variant and the GGUF of about its size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=24)
    parser.add_argument("--loop-records", type=int, default=12)
    parser.add_argument("--policy", type=int, nargs="+", default=[400, 1000], help="tokens of policy at most")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--variants", type=Path, default=None, help="folder to keep the converted models in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, model = args.variants or Path(temporary), base_model()
        paths = common.make_variants(folder, model, [*GGUF, *ONNX])
        loop = optimum_loop(folder, paths["f32"], args.threads or len(os.sched_getaffinity(0)))
        opened = {
            n: Guard.load(p, profile="instruct", runtime=RuntimeOptions(context=2048, threads=args.threads))
            for n, p in paths.items()
        }
        texts = common.messages(opened["f32"].backend.vocabulary, args.records)
        print(f"model {model.stem}, {len(texts)} records, messages 20 to 60 tokens")
        for policy in args.policy:
            guards = {
                n: Guard(g.backend, common.short_policy(g, policy), search=Search(min_grammar_mass=0))
                for n, g in opened.items()
            }
            compare(guards, texts, loop, args.loop_records)


def compare(guards: dict[str, Guard], texts: list[str], loop: Any, n_loop: int) -> None:
    first = guards["f32"]
    print(f"policy {common.n_shared(first)} tokens")
    walks = {
        n: Guard(g.backend, g.profile, estimator="conditional", search=Search(min_grammar_mass=0))
        for n, g in guards.items()
    }
    for guard in (*guards.values(), *walks.values()):
        guard.score(texts[0])  # the policy is evaluated here, once
    all_three = timed(guards, texts)
    walking = timed({n: walks[n] for n in ONNX}, texts)
    prompts = [first.prompt_ids(text) for text in texts[:n_loop]]
    full = np.array([common.seconds(lambda p=prompt: loop(p)) for prompt in prompts])
    for name, values in all_three.items():
        print(f"   {name}: {common.spread(1 / values, ' records/s')}")
    print(f"   ORTModelForCausalLM loop, full prompt, fp32: {common.spread(1 / full, ' records/s')}")
    for what, times in (("all three estimators", all_three), ("conditional alone", walking)):
        print(f"   {what} over that loop")
        for name in ONNX:
            print(f"      {name}: {common.spread(full / times[name][:n_loop], '×')}")
    print("   an ONNX variant's rate over that of the GGUF of about its size")
    for name, like in LIKE.items():
        print(f"      {name} over {like}: {common.spread(all_three[like] / all_three[name], '×')}", flush=True)


def timed(guards: dict[str, Guard], texts: list[str]) -> dict[str, np.ndarray]:
    """Seconds of every record, by every guard in turn."""
    times: dict[str, list[float]] = {name: [] for name in guards}
    for text in texts:
        for name, guard in guards.items():
            times[name].append(common.seconds(lambda g=guard, t=text: g.score(t)))
    return {name: np.array(values) for name, values in times.items()}


def optimum_loop(folder: Path, f32: Path, threads: int) -> Any:
    """A function of token ids: the greedy answer with the logits of its tokens."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM
    from transformers import AutoModelForCausalLM, logging

    from edgeguard.formats import gguf

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ["TQDM_DISABLE"] = "1"
    checkpoint = folder / "checkpoint"
    if not (checkpoint / "config.json").exists():
        model = AutoModelForCausalLM.from_pretrained(f32.parent, gguf_file=f32.name, dtype=torch.float32)
        model.save_pretrained(checkpoint)
        for name, data in tokenizer_files(gguf.read_header(f32)).items():
            (checkpoint / name).write_bytes(data)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    ort = ORTModelForCausalLM.from_pretrained(checkpoint, export=True, session_options=options)

    def loop(ids: tuple[int, ...]) -> object:
        given = torch.tensor([ids])
        mask = torch.ones_like(given)
        more = {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 2}
        return ort.generate(given, attention_mask=mask, max_new_tokens=16, do_sample=False, **more)

    return loop


if __name__ == "__main__":
    main()
