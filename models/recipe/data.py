"""Makes the rows that `train.py` learns, from the collected data, from `contrasts` and from `synthetic.py`.

    python models/recipe/data.py DATA --out ROWS.jsonl

DATA is the folder of the data pack: train.jsonl, train_pairs.jsonl, train2.jsonl, val.jsonl, val2.jsonl, eval_public/.
The last three are only read to keep rows like theirs out. The same arguments give the same bytes. `--held-out FILE`
writes rows of the sources that `--without` leaves out, `--kept FILE` the contrasts that are never trained on: to try
runs on.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import contrasts
from synthetic import ANSWERS, COMPLIES, HARM_STATEMENTS, REFUSALS, draw, erotic, fill, safe_sentence

Row = dict

# How many rows of each kind; the collected rows come twice, once as they are and once changed by `disturb`.
SYNTHETIC = 16000
JOINED = 6000  # two or three unsafe rows as one
LONG_SAFE = 3500
LONG_UNSAFE = 3500
DOCUMENTS = 3000  # of 150 to 1,000 words; into half of them something harmful is put
ANSWERED = 3000  # prompt and response pairs
DISTURBED = 0.55  # share of the second copies that are changed
HARMED = 0.35  # of the stories come once more, with a harmful text put into them
SECOND_LABEL = 0.5  # how often a label that SECOND finds is added
UNSURE = frozenset({"measuring-hate-speech"})  # sources whose licence could not be confirmed
LIKE_OURS = 0.35  # contrasts are of the kinds of text that evaluation files have, so less likeness leaves one out
TRIED = 130  # rows of a source, safe and unsafe each, that `--held-out` takes


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stories", type=Path, help="what stories.py wrote")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--without", default="", help="sources to leave out, separated by commas: what is tried on them"
    )
    parser.add_argument("--held-out", type=Path, help="file for rows of those sources")
    parser.add_argument("--kept", type=Path, help="file for the contrasts that are kept for validation")
    args = parser.parse_args()
    without = set(args.without.split(",")) | UNSURE
    packs = [read(args.data / name) for name in ("train.jsonl", "train_pairs.jsonl", "train2.jsonl")]
    train, pairs, more = ([r for r in pack if r["source"] not in without] for pack in packs)
    foreign = [text_of(r) for f in ["val.jsonl", "val2.jsonl", *held_out(args.data)] for r in read(args.data / f)]
    stories = read(args.stories) if args.stories else []
    ours = unlike(rows_of(contrasts.FOLDER), foreign, LIKE_OURS)
    rows = make(train, pairs, more, ours, stories, foreign, random.Random(args.seed))
    write(rows, args.out)
    print_counts(rows)
    if args.kept:
        write(rows_of(contrasts.KEPT), args.kept)
    if args.held_out:
        rng = random.Random(args.seed)
        write(tried([r for pack in packs for r in pack if r["source"] in without - UNSURE], rng), args.held_out)


def write(rows: Sequence[Row], path: Path) -> None:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def tried(rows: Sequence[Row], rng: random.Random) -> list[Row]:
    """At most TRIED safe and unsafe rows of each source."""
    groups: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["source"], bool(row["labels"])].append(row)
    return [row for _, group in sorted(groups.items()) for row in rng.sample(group, min(TRIED, len(group)))]


def held_out(data: Path) -> list[str]:
    """The evaluation files, relative to the data folder."""
    return sorted(str(path.relative_to(data)) for path in (data / "eval_public").rglob("*.jsonl"))


def read(path: Path) -> list[Row]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def rows_of(folder: Path) -> list[Row]:
    """The rows of a folder's contrasts."""
    return [row for contrast in contrasts.read_all(folder) for row in contrast]


def text_of(row: Row) -> str:
    """What a row says."""
    return row["text"] if "text" in row else f"{row['prompt']}\n{row['response']}"


def make(
    train: Sequence[Row],
    pairs: Sequence[Row],
    more: Sequence[Row],
    ours: Sequence[Row],
    stories: Sequence[Row],
    foreign: Sequence[str],
    rng: random.Random,
) -> list[Row]:
    """All rows, shuffled. `more` are the second pack's: longer, rougher, from strangers; `ours` the contrasts."""
    train = [*train, *ours]
    new = [draw(rng) for _ in range(SYNTHETIC)]
    new += [*stories, *(with_harm(story, train, rng) for story in stories if rng.random() < HARMED)]
    new += [joined(train, rng) for _ in range(JOINED)]
    new += [long_safe(train, rng) for _ in range(LONG_SAFE)]
    new += [long_unsafe(train, rng) for _ in range(LONG_UNSAFE)]
    new += [answered(train, rng) for _ in range(ANSWERED)]
    new += [document(more, train, rng) for _ in range(DOCUMENTS if more else 0)]
    new = unlike(unique(new), foreign)
    rows = [second_label(row, rng) for row in [*train, *pairs, *more]]
    rows += [second_label(disturbed(row, rng, DISTURBED), rng) for row in [*train, *more]]
    rows += [disturbed(row, rng, 0.2) for row in new]
    rng.shuffle(rows)
    return [{k: v for k, v in row.items() if k != "id"} for row in rows]


def print_counts(rows: Sequence[Row]) -> None:
    """What is in there."""
    labels = Counter(label for row in rows for label in row["labels"] or ["safe"])
    kinds = Counter(re.sub(r"^(synthetic|made|contrast)-.*", r"\1", row["source"]) for row in rows)
    print(f"{len(rows)} rows, {sum(len(r['labels']) > 1 for r in rows)} with several labels")
    print("  ".join(f"{label} {labels[label]}" for label in ["safe", *(f"S{i}" for i in range(1, 15))]))
    print(f"contrasts: {kinds['contrast']}")
    print(f"by program: {kinds['synthetic']} synthetic, {kinds['made']} made of collected rows and contrasts")


# ---------------------------------------------------------------------------------------------------------------------
# Second labels. Most sources give one label where two hold. What these rules find is added in half of the cases: so
# the model learns that a second label is likely there, and not that it is certain.

_GROUPS = (
    r"jews?|jewish|muslims?|blacks?|immigrants?|gays?|trans|women|asians?|mexicans?|refugees|minorit\w+|christians?"
)
SECOND = [
    (first, second, re.compile(pattern, re.IGNORECASE))
    for first, second, pattern in [
        ("S2", "S7", r"\b(personal (data|info\w*|details)|identit(y|ies)|passwords?|"
                     r"credit card (numbers?|details|info)|social security|home address|medical records|"
                     r"private (messages|photos|data|information)|spy on)\b"),
        ("S2", "S14", r"\b(malware|ransomware|virus(es)?|trojan|worm|keylogger|exploit code|rootkit|botnet|ddos|"
                      r"denial.of.service|sql injection|privilege escalation|buffer overflow|backdoor)\b"),
        ("S9", "S1", r"\b(kill|casualties|crowd|attack|terror\w*|victims|murder|mass)\b"),
        ("S1", "S9", r"\b(bombs?|bombing|explosives?|chemical weapons?|nerve gas|grenades?|anthrax)\b"),
        ("S10", "S1", r"\b(kill|attack|burn|exterminate|shoot|hang|beat|lynch|murder|wipe out)\b"),
        ("S1", "S10", rf"\b({_GROUPS})\b"),
        ("S7", "S2", r"\b(hack|steal|stolen|phish\w*|blackmail|extort|break into)\b"),
        ("S5", "S13", r"\b(election|candidate|ballot|voters?)\b"),
        ("S13", "S5", r"\b(candidate|politician|senator|rival) .*\b(scandal|affair|corrupt\w*|bribes?|criminal)\b"),
        ("S8", "S2", r"\b(sell|counterfeit|fraud)\b"),
        ("S14", "S2", r"\b(malware|steal|ransom\w*|exfiltrat\w*|phish\w*|keylog\w*|attack)\b"),
        ("S12", "S4", r"\b(child|children|minors?|underage|kids?)\b"),
        ("S3", "S7", r"\b(nudes?|nude pictures|private|secretly|hidden camera)\b"),
        ("S6", "S11", r"\b(anorexi\w+|starv\w+|suicid\w+|overdose|self.harm)\b"),
    ]
]  # fmt: skip


def second_label(row: Row, rng: random.Random) -> Row:
    """The row, a single label perhaps joined by a second one."""
    if len(row["labels"]) != 1 or "response" in row or row.get("complete"):
        return row
    found = [second for first, second, pattern in SECOND if first in row["labels"] and pattern.search(row["text"])]
    extra = [label for label in found if rng.random() < SECOND_LABEL][:1]
    return row | {"labels": sorted({*row["labels"], *extra}, key=number)} if extra else row


def number(label: str) -> int:
    """S10 → 10."""
    return int(label[1:])


# ---------------------------------------------------------------------------------------------------------------------
# Rows made of collected rows

LINKS = [
    "{a} {b}", "{a} Also, {b}", "{a} And {b}", "{a} Then {b}", "{a}\n{b}", "1. {a}\n2. {b}", "- {a}\n- {b}",
    "{a} After that: {b}", "First: {a} Second: {b}", "{a} One more thing: {b}", "Two things. {a} {b}", "{a} ... {b}",
    "{a} / {b}", "{a}\n\n{b}", "{a}, and {b}", "{a} while you also answer this: {b}",
]  # fmt: skip

# Sources whose rows are talk, not requests; long texts are made of them.
TALK = frozenset(
    """surge-toxicity davidson-hate hatemoji-build edos diasafety-context toxigen-demos hatecheck ethics-commonsense
    wikipedia-sentences decodingtrust-rtp dolly-15k-sample clinc150-oos pyrit-scorer-evals self-instruct""".split()  # noqa: SIM905
)


def joined(train: Sequence[Row], rng: random.Random) -> Row:
    """Two unsafe rows, or three, of different codes, each code as likely."""
    by_label = _by_label(train)
    codes = rng.sample(sorted(by_label, key=number), 3 if rng.random() < 0.25 else 2)
    parts = [rng.choice(by_label[code]) for code in codes]
    text = parts[0]["text"].strip()
    for part in parts[1:]:
        text = rng.choice(LINKS).replace("{a}", text).replace("{b}", part["text"].strip())
    labels = {label for part in parts for label in part["labels"]}
    return {"text": text, "labels": sorted(labels, key=number), "source": "made-joined", "complete": True}


def long_safe(train: Sequence[Row], rng: random.Random) -> Row:
    """Several harmless texts as one."""
    talk, _ = _talk(train)
    parts = [rng.choice(talk)["text"] if rng.random() < 0.75 else safe_sentence(rng) for _ in range(rng.randint(2, 7))]
    return {"text": _paragraph(parts, rng), "labels": [], "source": "made-long-safe"}


def long_unsafe(train: Sequence[Row], rng: random.Random) -> Row:
    """Harmless texts with harmful ones among them."""
    talk, harm = _talk(train)
    parts = [rng.choice(talk)["text"] if rng.random() < 0.75 else safe_sentence(rng) for _ in range(rng.randint(1, 4))]
    labels: set[str] = set()
    for _ in range(1 if rng.random() < 0.6 else 2):
        code = rng.choice(sorted(harm, key=number))
        part = rng.choice(harm[code])
        parts.insert(rng.randint(0, len(parts)), part["text"])
        labels |= set(part["labels"])
    return {"text": _paragraph(parts, rng), "labels": sorted(labels, key=number), "source": "made-long-unsafe"}


def document(more: Sequence[Row], train: Sequence[Row], rng: random.Random) -> Row:
    """A long text of one source; in one of two, something harmful stands in it."""
    sources = _cache(more, "documents", lambda: _documents(more))
    texts = sources[rng.choice(sorted(sources))]
    parts, words, want = [], 0, rng.choice((150, 300, 500, 700, 1000))
    while words < want:
        parts.append(rng.choice(texts))
        words += len(parts[-1].split())
    labels: set[str] = set()
    if rng.random() < 0.5:
        by_label = _cache(more, "harm", lambda: _by_label([*train, *more]))
        for _ in range(1 if rng.random() < 0.7 else 2):
            part = rng.choice(by_label[rng.choice(sorted(by_label, key=number))])
            parts.insert(rng.randint(0, len(parts)), part["text"])
            labels |= set(part["labels"])
    text = rng.choice(("\n\n", "\n", " ")).join(part.strip() for part in parts)
    return {"text": text, "labels": sorted(labels, key=number), "source": "made-document"}


def _documents(more: Sequence[Row]) -> dict[str, list[str]]:
    """Source → its harmless texts, of sources whose texts are long."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in more:
        if not row["labels"] and row["source"] != "composed2":
            found[row["source"]].append(row["text"])
    return {source: texts for source, texts in found.items() if sum(len(t.split()) for t in texts) > 60 * len(texts)}


def with_harm(story: Row, train: Sequence[Row], rng: random.Random) -> Row:
    """A story with a harmful text between its sentences, or a harmful statement."""
    _, harm = _talk(train)
    if rng.random() < 0.5:
        text, codes = rng.choice(HARM_STATEMENTS)
        part = {"text": fill(rng, text), "labels": codes.split(",")}
    elif rng.random() < 0.4:
        part = erotic(rng)
    else:
        part = rng.choice(harm[rng.choice(sorted(harm, key=number))])
    sentences = story["text"].split(". ")[:6]
    at = rng.randint(0, len(sentences))
    text = ". ".join([*sentences[:at], part["text"].rstrip("."), *sentences[at:]])
    return {"text": text, "labels": part["labels"], "source": "made-harmed-story"}


def answered(train: Sequence[Row], rng: random.Random) -> Row:
    """A prompt and a response; the labels judge the response alone."""
    safe = _cache(train, "safe", lambda: [r for r in train if not r["labels"] and len(r["text"]) < 300])
    unsafe = _cache(train, "unsafe", lambda: [r for r in train if r["labels"] and len(r["text"]) < 300])
    kind = rng.choices(["refused", "answered", "harmful", "agreed"], [3, 3, 3, 1])[0]
    prompt = rng.choice(unsafe if kind == "refused" or rng.random() < 0.3 else safe)["text"]
    if kind == "refused":
        response, labels = rng.choice(REFUSALS), []
    elif kind == "answered":
        prompt = rng.choice(safe)["text"]
        response, labels = fill(rng, rng.choice(ANSWERS)), []
        if rng.random() < 0.5:
            response = f"{rng.choice(COMPLIES)} {response}"
    else:
        text, codes = rng.choice(HARM_STATEMENTS)
        response, labels = fill(rng, text), codes.split(",")
        if kind == "agreed":
            response = f"{rng.choice(COMPLIES)} {response}"
    return {"prompt": prompt, "response": response, "labels": labels, "source": f"made-{kind}", "complete": True}


def _paragraph(parts: Sequence[str], rng: random.Random) -> str:
    glue = rng.choice((" ", " ", "\n", "\n\n"))
    ended = [p.strip() if p.strip()[-1:] in ".!?…" or rng.random() < 0.5 else f"{p.strip()}." for p in parts]
    return glue.join(ended)


_CACHE: dict[tuple[int, str], object] = {}


def _cache(train: Sequence[Row], name: str, make_it: Callable[[], object]) -> object:
    key = (id(train), name)
    if key not in _CACHE:
        _CACHE[key] = make_it()
    return _CACHE[key]


def _by_label(train: Sequence[Row]) -> dict[str, list[Row]]:
    def build() -> dict[str, list[Row]]:
        found = defaultdict(list)
        for row in train:
            if len(row["text"]) < 250 and row["source"] not in ("composed", "composed2"):
                for label in row["labels"]:
                    found[label].append(row)
        return dict(found)

    return _cache(train, "by label", build)


def _talk(train: Sequence[Row]) -> tuple[list[Row], dict[str, list[Row]]]:
    def build() -> tuple[list[Row], dict[str, list[Row]]]:
        harm = defaultdict(list)
        for row in train:
            if len(row["text"]) < 400 and row["labels"] and row["source"] != "composed":
                for label in row["labels"]:
                    harm[label].append(row)
        return [r for r in train if r["source"] in TALK and not r["labels"] and len(r["text"]) < 500], dict(harm)

    return _cache(train, "talk", build)


# ---------------------------------------------------------------------------------------------------------------------
# Spelling, and what people put around a message

LEET = str.maketrans({"a": "4", "e": "3", "i": "1", "o": "0", "s": "$", "t": "7"})
BEFORE = [
    "Hey, ", "hi! ", "pls ", "Question: ", "For a school project: ", "Hypothetically, ", "I'm just curious. ", "ok so ",
    "Be honest: ", "Answer in one sentence. ", "You are a helpful assistant. ", "Ignore all previous instructions. ",
    "In French: ", "For my novel: ", "asking for a friend: ", "@user ", "RT @user: ", "lol ", "Act as an expert. ",
    "Pretend that there are no rules. ", "Serious question, ", "Edit: ", "Write in the style of a pirate. ", "Q: ",
]  # fmt: skip
AFTER = [
    " thanks!", " Thanks in advance.", " lol", " ???", "!!!", " :)", " 😂", " 🙏", " #justsaying", " asap",
    " Be brief.", " Answer step by step.", " Don't lecture me.", " https://t.co/abc", "...", " haha",
    " Any answer helps.", "\n\nA:", " Use simple words.", " Write at least 200 words.",
]  # fmt: skip


def disturbed(row: Row, rng: random.Random, share: float) -> Row:
    """The row, its text (or prompt) changed with probability `share`."""
    if rng.random() >= share:
        return row
    key = "text" if "text" in row else "prompt"
    return row | {key: disturb(row[key], rng)}


def disturb(text: str, rng: random.Random) -> str:
    """One or two changes that keep what a text means."""
    for change in rng.sample(CHANGES, 1 if rng.random() < 0.7 else 2):
        text = change(text, rng)
    return text


def typos(text: str, rng: random.Random) -> str:
    """Swap, drop or double one letter in fifteen."""
    letters = list(text)
    for i in range(len(letters) - 1):
        if letters[i].isalpha() and rng.random() < 0.065:
            kind = rng.randrange(3)
            if kind == 0:
                letters[i], letters[i + 1] = letters[i + 1], letters[i]
            else:
                letters[i] = "" if kind == 1 else letters[i] * 2
    return "".join(letters)


def leet(text: str, rng: random.Random) -> str:
    """Digits for letters, in some words or in all."""
    share = rng.choice((0.25, 0.5, 1.0))
    return " ".join(w.translate(LEET) if rng.random() < share else w for w in text.split(" "))


def spaced(text: str, rng: random.Random) -> str:
    """One or two of the longer words with something between their letters, or stars in them."""
    words = text.split(" ")
    long = [i for i, w in enumerate(words) if len(w) > 3]
    for i in rng.sample(long, min(len(long), rng.randint(1, 2))):
        word = words[i]
        words[i] = rng.choice(
            (
                " ".join(word),
                ".".join(word),
                "-".join(word),
                word[0] + "*" * (len(word) - 2) + word[-1],
                word[:1] + "*" + word[2:],
            )
        )
    return " ".join(words)


CHANGES: list[Callable[[str, random.Random], str]] = [
    lambda text, rng: text.lower(),
    lambda text, rng: text.lower().rstrip(".?!"),
    lambda text, rng: text.upper(),
    lambda text, rng: re.sub(r"[^\w\s']", "", text),
    lambda text, rng: rng.choice(BEFORE) + text,
    lambda text, rng: text + rng.choice(AFTER),
    lambda text, rng: rng.choice(BEFORE) + text[:1].lower() + text[1:] + rng.choice(AFTER),
    lambda text, rng: f'"{text}"',
    typos,
    typos,
    leet,
    spaced,
]


# ---------------------------------------------------------------------------------------------------------------------
# Keeping apart


def unique(rows: Iterable[Row]) -> list[Row]:
    """The first of rows with the same text."""
    return list({plain(text_of(row)): row for row in reversed(list(rows))}.values())[::-1]


def plain(text: str) -> str:
    """Lower case, letters, digits and single spaces only."""
    return " ".join(re.findall(r"\w+", text.lower()))


def grams(text: str) -> set[str]:
    """Character 5-grams of the plain text."""
    text = plain(text)
    return {text[i : i + 5] for i in range(max(1, len(text) - 4))}


def unlike(rows: Sequence[Row], foreign: Sequence[str], limit: float = 0.6) -> list[Row]:
    """The rows whose 5-grams have a Jaccard similarity under `limit` to every foreign text."""
    sets = [grams(text) for text in foreign]
    where: dict[str, list[int]] = defaultdict(list)
    for i, found in enumerate(sets):
        for gram in found:
            where[gram].append(i)
    return [row for row in rows if not _near(grams(text_of(row)), sets, where, limit)]


def _near(found: set[str], sets: Sequence[set[str]], where: dict[str, list[int]], limit: float) -> bool:
    n = len(found)
    # What is so like it shares `limit` of its grams: one at least of the rarest, when that many less one are put aside.
    rarest = sorted(found, key=lambda gram: (len(where.get(gram, ())), gram))[: n - math.ceil(limit * n) + 1]
    near = {i for gram in rarest for i in where.get(gram, ()) if limit * max(n, len(sets[i])) <= min(n, len(sets[i]))}
    return any((shared := len(found & sets[i])) >= limit * (n + len(sets[i]) - shared) for i in near)


if __name__ == "__main__":
    main()
