"""Longer harmless texts, written by the base model itself: stories, posts, letters, reviews.

    python models/recipe/stories.py --out STORIES.jsonl

The collected data hold few texts of more than two sentences that ask for nothing. The base model writes such texts at
once, on everyday topics and on dark ones that it treats as a newspaper would. All are taken for safe. Sampling is
seeded; other machines round otherwise and write other texts of the same kind.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone gives it
from export import DEFAULT, find_base
from network import Adapter, Network, _norm, _rotate
from synthetic import fill, split

from edgeguard.backend import RuntimeOptions
from edgeguard.backends import open_backend

FORMS = split("""a short story about
a diary entry about
a blog post about
a news report about
a forum post by someone who asks for advice about
a product review that mentions
an email to a friend about
a dialogue between two friends about
a poem about
song lyrics about
three tweets about
a letter of complaint about
a travel report that mentions
a speech about
an interview about
a scene of a novel about
the summary of a film about
a long comment below a video about
a Reddit post about
a school essay about
an anecdote about
a scary story about
a love story about
a crime story about
a text message conversation about
a monologue of a character who thinks about
the beginning of a fantasy story about
a personal story about
a rant about
a history lesson about""")
TOPICS = split("""a lost dog
a long train ride
a quarrel between neighbors
a detective who looks for a murderer
a soldier who comes home from the war
a couple who fall in love
a first kiss
a wedding night, tastefully told
a divorce
a funeral
a boxing match
a hunting trip
a bank robbery that goes wrong
a hospital at night
a patient with cancer
a woman who leaves a violent husband
a boy who is bullied at school
racism at work
a demonstration that ends in a fight with the police
a difficult birth
a car accident
a shipwreck
a sword fight
a dragon that burns a village
a vampire who is tired of blood
zombies in a supermarket
a spy who is found out
a drunk uncle at Christmas
a hangover
a bad date
an awkward doctor's visit
a teenager who feels lonely
a sad winter
a man who lost his job
an election in a small town
a politician who lies
a corrupt policeman
a stolen bicycle
a hacker who helps a hospital
a prison kitchen
a chemistry class
a nuclear power plant
a video game tournament
a football match
a religious holiday
a mosque and a church in the same street
a trans teenager and her grandmother
a gay couple that adopts a child
a refugee who opens a restaurant
a black doctor in a small town
an old Jewish baker
a girl who wants to be a boxer
a swimming lesson
a beach day
a massage
a dance class
a broken heart
a cat who rules the house
a butcher's shop
a farm and its animals
a snake in the garden
a poisonous mushroom
a fire in the kitchen
a storm
a hike that went wrong
a new phone
a strange noise in the house
a haunted hotel
a cooking disaster
a job interview
a lazy roommate
a rude customer
a broken {thing}
{hobby}
{game}
{subject}
a weekend in {city}
{food}
{relative}
{historic}
{villain}
{publicplace}""")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # of the model's own chat template
TEMPERATURE, TOP_P = 0.9, 0.95
BATCH, LONGEST = 128, 180  # texts at a time; tokens, the prompt's included


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--number", type=int, default=1280)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng, dice = random.Random(args.seed), torch.Generator().manual_seed(args.seed)
    vocabulary = open_backend(find_base(DEFAULT), RuntimeOptions(context=512)).vocabulary
    start, end = vocabulary.control["<|im_start|>"], vocabulary.control["<|im_end|>"]
    network, plain = Network(find_base(DEFAULT), Adapter(1, 0.0)), vocabulary.encode
    with args.out.open("w", encoding="utf-8") as file:
        for _ in range(0, args.number, BATCH):
            asked = [fill(rng, f"Write {rng.choice(FORMS)} {rng.choice(TOPICS)}.") for _ in range(BATCH)]
            prompts = [
                [start, *plain(f"system\n{SYSTEM}"), end, *plain("\n"),
                 start, *plain(f"user\n{text}"), end, *plain("\n"), start, *plain("assistant\n")]
                for text in asked
            ]  # fmt: skip
            for ids in sample(network, prompts, end, dice):
                text = b"".join(vocabulary.pieces[i] for i in ids).decode(errors="ignore").strip()
                if len(text) > 80:
                    file.write(json.dumps({"text": cut(text, rng), "labels": [], "source": "story"}) + "\n")
            file.flush()


def cut(text: str, rng: random.Random) -> str:
    """Sometimes a part of it, and without the phrase that a chat model begins with."""
    first, _, rest = text.partition("\n")
    if rest.strip() and (first.endswith(":") or first.lower().startswith(("sure", "here", "certainly"))):
        text = rest.strip()
    if rng.random() < 0.3:
        sentences = text.split(". ")
        text = ". ".join(sentences[: rng.randint(1, len(sentences))])
    return text


@torch.no_grad()
def sample(network: Network, prompts: list[list[int]], end: int, dice: torch.Generator) -> list[list[int]]:
    """A continuation of each prompt. All rows go token by token from position 0 on, so none needs padding."""
    n = len(prompts)
    blocks = list(network.blocks)
    keys = [torch.zeros(n, b.n_head_kv, LONGEST, b.head, dtype=network.embedding.dtype) for b in blocks]
    values = [k.clone() for k in keys]
    rows = [list(p[:1]) for p in prompts]
    done = [False] * n
    for t in range(LONGEST - 1):
        x = F.embedding(torch.tensor([r[t] for r in rows]), network.embedding)[:, None]
        angle = torch.tensor([[float(t)]]) * network.frequencies
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for block, key, value in zip(blocks, keys, values, strict=True):
            x = _step(block, x, key, value, t, cos, sin)
        logits = F.linear(_norm(x[:, 0], network.output_norm, network.epsilon), network.embedding).float()
        following = _choose(logits, dice)
        for i, row in enumerate(rows):
            row.append(prompts[i][t + 1] if t + 1 < len(prompts[i]) else end if done[i] else int(following[i]))
            done[i] = done[i] or (t + 1 >= len(prompts[i]) and row[-1] == end)
        if all(done):
            break
    return [[i for i in row[len(p) :] if i != end] for row, p in zip(rows, prompts, strict=True)]


def _step(block: torch.nn.Module, x: torch.Tensor, key: torch.Tensor, value: torch.Tensor, t: int, cos, sin):
    n = len(x)
    h = _norm(x, block.attn_norm, block.epsilon)

    def weigh(name: str, given: torch.Tensor) -> torch.Tensor:
        return F.linear(given, getattr(block, name).weight)

    q = _rotate(weigh("attn_q", h).view(n, 1, block.n_head, block.head).transpose(1, 2), cos, sin)
    k = _rotate(weigh("attn_k", h).view(n, 1, block.n_head_kv, block.head).transpose(1, 2), cos, sin)
    key[:, :, t], value[:, :, t] = k[:, :, 0], weigh("attn_v", h).view(n, block.n_head_kv, block.head)
    q = q.view(n, block.n_head_kv, -1, block.head)
    scores = q @ key[:, :, : t + 1].transpose(2, 3) / math.sqrt(block.head)
    out = scores.float().softmax(-1).to(x.dtype) @ value[:, :, : t + 1]
    x = x + weigh("attn_output", out.reshape(n, 1, -1))
    h = _norm(x, block.ffn_norm, block.epsilon)
    return x + weigh("ffn_down", F.silu(weigh("ffn_gate", h)) * weigh("ffn_up", h))


def _choose(logits: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """Nucleus sampling among the 200 likeliest."""
    p, ids = (logits / TEMPERATURE).softmax(-1).topk(200)
    p[p.cumsum(-1) - p > TOP_P] = 0
    return ids.gather(1, torch.multinomial(p, 1, generator=dice))[:, 0]


if __name__ == "__main__":
    main()
