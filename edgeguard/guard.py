"""A guard: a model, a profile and an estimator. Texts and conversations in, probabilities out."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from edgeguard.answers import UNSAFE, Answers
from edgeguard.backend import Backend, Prefix, RuntimeOptions, room_of
from edgeguard.backends import open_backend
from edgeguard.builtin import ADAPTER, BuiltIn, Form, find_form
from edgeguard.calibration.decide import Decisions, decide
from edgeguard.calibration.files import read_calibration
from edgeguard.calibration.maps import Calibration
from edgeguard.calibration.thresholds import Thresholds, thresholds_for
from edgeguard.errors import ContextOverflow, OffGrammar, ProfileError, RecordError
from edgeguard.estimates import Estimates, Trees, estimate, fields_of
from edgeguard.estimators import ESTIMATORS, log_odds, marginal, names_no_code
from edgeguard.forms import Tell, in_log, open_built_in, prepare
from edgeguard.hub import resolved
from edgeguard.profile import Profile, detect_profile, load_profile, variant_of
from edgeguard.prompt import Ids, compile_prompt, told_early
from edgeguard.rows.judging import Input, judged, judged_together
from edgeguard.rows.record import Failure, Message, Record
from edgeguard.rows.shapes import make_record
from edgeguard.templates import expect_strangers
from edgeguard.together import batches, lockstep
from edgeguard.tree import Tree, explore, exploring
from edgeguard.windows import LEAST, TextWindow, split

T = TypeVar("T")
EstimatorName = Literal["conditional", "joint", "marginal"]
WindowSize = int | Literal["auto"]
ANSWER_ROOM = 32  # context tokens kept free for the answer's tree


@dataclass(frozen=True)
class Search:
    """How far to look into the tree of answers.

    tolerance         widest bound to accept, as a probability in [0, 1]; for the estimator "marginal"
    max_nodes         places of the tree to look into at most
    min_grammar_mass  under it a record is an OffGrammar error; None: the profile's own
    """

    tolerance: float = 0.01
    max_nodes: int = 64
    min_grammar_mass: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 1 or self.max_nodes < 1:
            raise ValueError(
                f"tolerance {self.tolerance} must lie in [0, 1] and max_nodes {self.max_nodes} be at least 1"
            )


@dataclass(frozen=True)
class Score:
    """One record's probabilities. All masses and probabilities in [0, 1], margins in nats.

    flagged          unsafe, or any category, is at or over its threshold; in two stages unsafe is
    unsafe           P(the answer says unsafe), summed over all answers looked into, by every estimator; with a question
                     for each category that of the umbrella question, or the largest (`estimates` says why)
    margin           log P(unsafe) - log P(safe), the model's own, calibrated or not
    categories       codes at or over their threshold; in two stages none where the record is not flagged
    category_scores  every code that was asked about → the estimator's probability
    bounds           "unsafe" and every code → certified [lower, upper] of P(the answer names it), through the
                     calibration's map where there is one; and "field=label" of the further fields
    fields           what the answer says besides, such as {"refusal": {"yes": 0.2, "no": 0.8}}: field → label → the
                     estimator's probability
    unexplored       mass of the answers not looked into; of several questions the largest
    off_grammar      mass seen to leave the profile's grammar; of several questions the largest
    tokens           prompt: its length; reused: of these, those that others share; answer: tokens tried
    skipped          turns, and parts of turns, of the record that were left out: guards do not judge them
    window           of a text that was judged in windows, the worst one: that with the largest margin. Every number is
                     then the largest of those that the windows have, but for tokens, which are all of theirs; None for
                     a text that was judged whole
    """

    id: str | int | None
    flagged: bool
    unsafe: float
    margin: float
    categories: tuple[str, ...]
    category_scores: Mapping[str, float]
    bounds: Mapping[str, tuple[float, float]]
    fields: Mapping[str, Mapping[str, float]]
    unexplored: float
    off_grammar: float
    estimator: str
    calibrated: bool
    guard: str
    profile: str
    model_sha256: str
    tokens: Mapping[str, int]
    skipped: int = 0
    window: TextWindow | None = None

    def row(self) -> dict[str, Any]:
        """As one JSON object; numbers to 7 significant digits, which is what float32 logits carry."""
        return {
            "id": self.id,
            "flagged": self.flagged,
            "unsafe": _digits(self.unsafe),
            "margin": _digits(self.margin),
            "categories": list(self.categories),
            "category_scores": {code: _digits(p) for code, p in self.category_scores.items()},
            "bounds": {label: [_digits(low), _digits(high)] for label, (low, high) in self.bounds.items()},
            "fields": {name: {label: _digits(p) for label, p in said.items()} for name, said in self.fields.items()},
            "unexplored": _digits(self.unexplored),
            "off_grammar": _digits(self.off_grammar),
            "estimator": self.estimator,
            "calibrated": self.calibrated,
            "guard": self.guard,
            "profile": self.profile,
            "model_sha256": self.model_sha256,
            "tokens": dict(self.tokens),
            "skipped": self.skipped,
            "window": None if self.window is None else asdict(self.window),
        }


@dataclass(frozen=True)
class QuestionResult:
    """What the answer to one question about a text of the self-test says. Probabilities in [0, 1], the margin in nats.

    question      the code that is asked about; None for one question about all
    unsafe        P(the answer says unsafe), the model's own; margin: log P(unsafe) - log P(safe)
    grammar_mass  probability on answers that the profile can read
    first_tokens  the likeliest beginnings of the answer, as text, with their probabilities; () where neither the
                  verdict nor the least mass on the grammar is this question's
    """

    question: str | None
    unsafe: float
    margin: float
    grammar_mass: float
    first_tokens: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class SelfTestResult:
    """What the guard made of one text of the profile's self-test pair. Names are those of `Score`.

    flagged     as a score says it
    no_code     [lower, upper] of P(the answer says unsafe and names no category), the model's own; None where answers
                name none
    decided_by  the question whose answer is the verdict; None for one question about all
    questions   what each question's answer says
    """

    text: str
    flagged: bool
    unsafe: float
    margin: float
    categories: tuple[str, ...]
    category_scores: Mapping[str, float]
    fields: Mapping[str, Mapping[str, float]]
    no_code: tuple[float, float] | None
    decided_by: str | None
    questions: tuple[QuestionResult, ...]

    @property
    def worst(self) -> QuestionResult:
        """The question with the least mass on the grammar."""
        return min(self.questions, key=lambda question: question.grammar_mass)

    @property
    def grammar_mass(self) -> float:
        """Probability on answers that the profile can read; of several questions the least."""
        return self.worst.grammar_mass


class Guard:
    """A loaded guard. Use as a context manager, or close it.

    Any number of threads may use one guard, and guards on the same backend: they take turns, record by record, and a
    record's scores are the same bits whichever thread asks. `close` waits for the record at hand; who comes after it
    gets a ValueError. So threads save no time (`RuntimeOptions.threads` does), they only wait where another can work:
    in asyncio, `await asyncio.to_thread(guard.score, text)`. A process that forks loads its guards after the fork.

    >>> with Guard.load() as guard:                                 # doctest: +SKIP
    ...     score = guard.score("How do I pick a lock?")
    ...     score.unsafe, score.category_scores["S2"]
    """

    def __init__(
        self,
        backend: Backend,
        profile: Profile,
        *,
        estimator: EstimatorName = "marginal",
        search: Search = Search(),
        calibration: Calibration | None = None,
        thresholds: Thresholds | Mapping[str, float] | None = None,
        window: WindowSize | None = None,
        runtime: RuntimeOptions = RuntimeOptions(),
        name: str | None = None,
    ) -> None:
        """Fit a profile to an open model. Raises ProfileError where they do not fit.

        estimator    "marginal" explores the tree of answers; the others walk one answer
        calibration  maps the scores; it is not held against the model here, see `Calibration.check`
        thresholds   None: the calibration's, 0.5 where it has none; a mapping of some labels replaces these alone
        window       `score` judges a longer text in overlapping windows of so many tokens at most, at least 32, and of
                     no more than the context leaves; "auto": of as many as that, for texts that do not fit; None: a
                     text that does not fit is a ContextOverflow
        runtime      what the model was opened with, for who asks; by its `together` many records go at once
        name         what scores call the guard; None: the model file's name
        """
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator is {estimator!r}; expected one of {', '.join(ESTIMATORS)}")
        if profile.questions is not None and estimator != "marginal":
            raise ProfileError(
                f"profile {profile.name} has a question for each category, and answers that name no codes; estimator "
                f"{estimator!r} is for answers that list codes, expected 'marginal'",
                kind="no_list",
            )
        if window not in (None, "auto") and (not isinstance(window, int) or window < LEAST):
            raise ValueError(f"window is {window!r}; expected 'auto', or at least {LEAST} tokens")
        self.backend, self.profile, self.estimator, self.window = backend, profile, estimator, window
        self.search, self.calibration, self.runtime, self._name = search, calibration, runtime, name
        self.thresholds = thresholds_for(calibration, thresholds)
        check_decisions(profile, self.calibration, self.thresholds)
        self._min_mass = profile.min_grammar_mass if search.min_grammar_mass is None else search.min_grammar_mass
        vocabulary = told_early(backend.vocabulary, backend.n_ctx) if window is None else backend.vocabulary
        self._prompter = compile_prompt(profile, backend.info.chat_template, vocabulary)
        self._answers = Answers(profile.answer, backend.vocabulary, self._prompter.stops)
        self._answers_on_response = (
            self._answers
            if profile.answer.user == profile.answer.assistant
            else Answers(profile.answer, backend.vocabulary, self._prompter.stops, judged="assistant")
        )
        self._roots: dict[tuple[int, ...], Prefix] = {}
        self._closed = False

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        profile: str | Path | Profile | None = None,
        policies: Sequence[str] | None = None,
        strictness: str | None = None,
        estimator: EstimatorName = "marginal",
        runtime: RuntimeOptions = RuntimeOptions(),
        search: Search = Search(),
        calibration: str | Path | Calibration | bool = True,
        thresholds: Thresholds | Mapping[str, float] | None = None,
        window: WindowSize | None = None,
        tell: Tell = in_log,
    ) -> Self:
        """Open a model file and fit a profile to it, in this process, which a crash in native code ends.

        `edgeguard.isolated` opens it in a process of its own, which can be spared.

        model        a GGUF or ONNX file, a folder with one, or a built-in guard's name, with one of its versions and
                     forms perhaps: "edgeguard-135m@1:q4_0"; "hf:org/repo:file@revision" for a hub's, which
                     `edgeguard.hub` fetches once; None for the default guard. With a `profile` that is not the default
                     guard's, None is the model that it stands on. With a `lora`, that is what stands beside the base
        profile      a built-in's name, a TOML file, a Profile; None to tell it from the model file
        policies     the codes to ask about, of a profile with a question for each; None: all
        strictness   what counts as unsafe, of a profile that leaves it open; None: the profile's default
        runtime      how to open the model; `forms.chosen` says which form of a built-in guard that is
        calibration  a file; True: the one a built-in guard comes with; False: none, the model's own probabilities.
                     One of another guard, profile, estimator or model file is refused, but for an `unbound` one
        thresholds   in place of the calibration's; a mapping of some labels replaces these alone
        window       judge longer texts in windows of so many tokens; "auto": of what the context leaves; None: never
        tell         hears what takes time or is amiss with a built-in guard's files, a line each; left out, the log

        Raises ModelError, CalibrationError, or ProfileError where the model file does not say for certain which guard
        it is.
        """
        given = profile if isinstance(profile, Profile) or profile is None else load_profile(profile)
        if given is not None or (model is not None and Path(model).exists()):
            expect_strangers(given)  # gets ready while the model is being opened
        opened = _open(model, given, runtime, tell)
        backend = opened.backend
        try:
            given = variant_of(opened.profile or _detected(backend), policies, strictness)
            if calibration is True:
                calibration = opened.calibration(estimator, tell)
            maps = _calibration(calibration, given, estimator, backend)
            return cls(
                backend,
                given,
                estimator=estimator,
                search=search,
                calibration=maps,
                thresholds=thresholds,
                window=window,
                runtime=runtime,
                name=None if opened.built is None else opened.built.called,
            )
        except BaseException:
            backend.close()
            raise

    def deciding(self, calibration: Calibration | None, thresholds: Thresholds) -> Self:
        """The same guard, deciding by others: the model, its memory and its lock are shared, nothing is loaded.

        As with `Guard(…)` the calibration is not held against the model; `check_decisions` is who calls' business.
        """
        other = copy.copy(self)
        other.calibration, other.thresholds = calibration, thresholds
        return other

    @property
    def name(self) -> str:
        """A built-in's own; else the model file's name without its ending, or its folder's, which tells one
        quantization from another.
        """
        if self._name is not None:
            return self._name
        path = self.backend.info.path
        return path.resolve().parent.name if path.name == "model.onnx" else path.stem

    @property
    def model_sha256(self) -> str:
        """Of the model's files, as its scores say it."""
        return self.backend.info.sha256

    @property
    def codes(self) -> tuple[str, ...]:
        """Those of the taxonomy that are asked about, in order. What a guard decides is "unsafe" and these."""
        return tuple(category.code for category in self.profile.asked)

    @property
    def field_labels(self) -> tuple[str, ...]:
        """What rows report besides, as "field=label"; "code.field=label" where each code has its own question."""
        further = [f"{field.name}={label.name}" for field in self.profile.answer.reported for label in field.labels]
        return tuple(label if code is None else f"{code}.{label}" for code in self.questions for label in further)

    @property
    def questions(self) -> tuple[str | None, ...]:
        """The codes that are asked about, a prompt for each; (None,) for one prompt about all of them."""
        return self._prompter.questions

    @property
    def lists_codes(self) -> bool:
        """Whether an answer lists codes, as the paper's guards do: its baselines are for these alone."""
        return self.profile.answer.user.category is not None

    @property
    def answers(self) -> Answers:
        """The profile's answers as an automaton over this model's tokens, for `tree.explore`."""
        return self._answers

    def score(self, record: str | Mapping[str, Any] | Record, *, grows: bool = False) -> Score:
        """Score a text, a mapping as in a JSONL line, or a Record. Raises RecordError, TypeError for anything else.

        grows  it will be asked about again with more at its end, as a streamed answer is: what is computed of it may be
               kept. That changes nothing but the time
        """
        record = make_record(record)
        with self._in_use():
            windows = self._windows(record.messages)
            if not windows:
                return self._score_whole(record, grows=grows)
            return _worst([self._score_part(record, window) for window in windows], windows)

    def windows(self, record: str | Mapping[str, Any] | Record) -> tuple[TextWindow, ...]:
        """Those that the judged text of a record is scored in; () where it is scored whole. Raises RecordError."""
        record = make_record(record)
        with self._in_use():
            return self._windows(record.messages)

    def score_many(self, records: Iterable[Input]) -> Iterator[Score | Failure]:
        """Score a stream: one result a record, in order, as they come. A bad record is a Failure in its place."""
        return (result for _, result in self.judged(records, type(self).score, many=type(self).score_together))

    def judged(
        self,
        records: Iterable[Input],
        task: Callable[[Self, Record], T],
        *,
        many: Callable[[Self, Sequence[Record]], Sequence[T | RecordError]] | None = None,
        where: str = "",
    ) -> Iterator[tuple[Record | Failure, T | Failure]]:
        """Each record as it was understood, and what `task(guard, record)` makes of it: `rows.judging.judged`.

        many  what makes the same of several at once; taken where the guard was opened for records `together`
        """
        n = self.runtime.together
        if n is None or many is None:
            return judged(records, partial(task, self), where=where)
        return judged_together(records, partial(many, self), n, where=where)

    def score_together(self, records: Sequence[str | Mapping[str, Any] | Record]) -> list[Score | RecordError]:
        """Score several at once, in batches of as many as `runtime.together` says: a score each, or why there is none.

        A record's last digits depend on those beside it. Raises TypeError for what is none.
        """
        with self._in_use():
            asked = [_or_error(self._asked_whole_or_in_windows, record) for record in records]
            parts = [part for one in asked if not isinstance(one, RecordError) for part in one[1]]
            found = iter(self._explore_parts(parts))
        return [
            one if isinstance(one, RecordError) else _or_error(self._score_parts, *one, [next(found) for _ in one[1]])
            for one in asked
        ]

    def explore_together(
        self, records: Sequence[str | Mapping[str, Any] | Record], *, evidence: bool = False
    ) -> list[tuple[Trees, float] | RecordError]:
        """As `explore_all`, or `explore_with_evidence`, for several at once; without evidence the number is NaN."""
        if evidence:
            self._check_lists_codes()
        with self._in_use():
            asked = [_or_error(lambda one: self._part(make_record(one).messages), record) for record in records]
            found = iter(self._explore_parts([one for one in asked if isinstance(one, _Part)], evidence=evidence))
        return [one if isinstance(one, RecordError) else next(found) for one in asked]

    def explore(self, record: str | Mapping[str, Any] | Record, question: str | None = None) -> Tree:
        """The explored tree of answers to a record. Raises RecordError.

        question  one of `questions`; ValueError for none where there are several
        """
        record = make_record(record)
        with self._in_use():
            return self._explore(self._prompt(record, question), record.messages)

    def explore_all(self, record: str | Mapping[str, Any] | Record) -> Trees:
        """The explored trees of the answers to all questions about a record. Raises RecordError."""
        record = make_record(record)
        with self._in_use():
            prompts = self._prompts(record.messages)
            return {question: self._explore(prompt, record.messages) for question, prompt in prompts.items()}

    def explore_with_evidence(self, record: str | Mapping[str, Any] | Record) -> tuple[Trees, float]:
        """The trees, and the log-sum-exp of the model's logits where it is about to write the first label.

        The label's log-probability there plus this is its logit, which some baselines take for evidence; a label of
        several tokens gets one too. Raises RecordError, and ProfileError where an answer names no codes.
        """
        self._check_lists_codes()
        record = make_record(record)
        with self._in_use():
            prompt = self._prompt(record, None)
            tree = self._explore(prompt, record.messages)
            logits = self.backend.logits([self._way_to_label(prompt, record.messages)])[0].astype(np.float64)
        return {None: tree}, float(np.logaddexp.reduce(logits))

    def _check_lists_codes(self) -> None:
        if not self.lists_codes:
            raise ProfileError(
                f"the answers of profile {self.profile.name} name no codes; there is no first label whose logit could "
                "be evidence",
                kind="no_list",
            )

    def _way_to_label(self, prompt: Prefix, messages: tuple[Message, ...]) -> Prefix:
        """Where the model is about to write the first label."""
        way = self._judging(messages).way_to_label
        return Prefix(way, prompt) if way else prompt

    @property
    def umbrella(self) -> str | None:
        """The code whose question decides "unsafe", where each has its own and one of them does."""
        return None if self.profile.questions is None else self.profile.questions.umbrella

    def prompt(self, record: str | Mapping[str, Any] | Record, question: str | None = None) -> Prefix:
        """What the model reads of a record: its own tokens, on the preamble as the parent, which others share.

        question  one of `questions`; ValueError for none where there are several
        """
        record = make_record(record)
        with self._in_use():
            return self._prompt(record, question)

    def prompt_ids(self, record: str | Mapping[str, Any] | Record, question: str | None = None) -> tuple[int, ...]:
        """The token ids of a record's whole prompt."""
        return self.prompt(record, question).path()

    def piece(self, token: int) -> str:
        """What a token writes, as text."""
        return self._answers.piece(token).decode(errors="replace")

    def self_test(self) -> tuple[SelfTestResult, SelfTestResult]:
        """Judge the profile's safe and unsafe text. Raises ProfileError where the profile has none."""
        pair = self.profile.self_test
        if pair is None:
            raise ProfileError(f"{self.profile.source}: the profile has no [self_test] safe and unsafe text")
        return self._judge(pair.safe), self._judge(pair.unsafe)

    def close(self) -> None:
        """Free the model, after the record at hand. Calling it twice is fine; scoring after it is a ValueError."""
        with self.backend.lock:
            self._closed = True
            self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """The model is this thread's until the record at hand is done. Raises ValueError where the guard is closed."""
        with self.backend.lock:
            if self._closed:
                raise ValueError("the guard is closed")
            yield

    def _prompts(self, messages: tuple[Message, ...], *, grows: bool = False) -> dict[str | None, Prefix]:
        """Question → its prompt, on what it has in common with others. Raises ContextOverflow."""
        parts = self._prompter.parts(messages)
        prompts: dict[str | None, Prefix] = {}
        texts: dict[Ids, Prefix] = {}  # preamble → the record on it, where the questions come after it
        for question, (preamble, rest) in parts.asked.items():
            begin = self._roots.setdefault(preamble, Prefix(preamble))
            if parts.shared:
                begin = texts.setdefault(preamble, Prefix(parts.shared, begin, grows=grows))
            prompts[question] = Prefix(rest, begin, ask=bool(parts.shared), grows=grows)
        longest = max(len(prompt.path()) for prompt in prompts.values())
        if longest + ANSWER_ROOM > self.backend.n_ctx:
            raise ContextOverflow(longest + ANSWER_ROOM, self.backend.n_ctx)
        return prompts

    def _windows(self, messages: tuple[Message, ...]) -> tuple[TextWindow, ...]:
        """How the last of these is judged: () for whole. Raises ContextOverflow where the others leave no room."""
        if self.window is None:
            return ()

        def tokens(text: str) -> int:
            return len(self.backend.vocabulary.encode(text))

        def needs(text: str) -> int:
            """Tokens of the context that the longest of the prompts takes with this text, and the answers to it."""
            filled = _with_text(messages, text)
            return ANSWER_ROOM + max(len(self._prompter.encode(filled, question)) for question in self.questions)

        text, n_ctx = messages[-1].content, self.backend.n_ctx
        needed = needs(text)
        if needed <= n_ctx and (self.window == "auto" or tokens(text) <= self.window):
            return ()
        room = n_ctx - (needs("a") - 1)
        if room < LEAST:
            raise ContextOverflow(needed, n_ctx, room=room)
        budget = room if self.window == "auto" else min(room, self.window)
        return split(text, budget, tokens, lambda part: needs(part) <= n_ctx)

    def _prompt(self, record: Record, question: str | None) -> Prefix:
        prompts = self._prompts(record.messages)
        if question not in prompts:
            expected = "None, all codes at once" if None in prompts else ", ".join(map(str, prompts))
            raise ValueError(f"question is {question!r}; profile {self.profile.name} asks about {expected}")
        return prompts[question]

    def _judging(self, messages: tuple[Message, ...]) -> Answers:
        """The answers as they are read where the last of these turns is judged."""
        return self._answers_on_response if messages[-1].role == "assistant" else self._answers

    def _explore(self, prompt: Prefix, messages: tuple[Message, ...]) -> Tree:
        return explore(self.backend.logprobs, self._judging(messages), prompt, **self._far)

    @property
    def _far(self) -> dict[str, Any]:
        """How far trees are explored."""
        tolerance = self.search.tolerance if self.estimator == "marginal" else None
        return {"tolerance": tolerance, "max_rows": self.search.max_nodes}

    # Several records at once

    def _part(self, messages: tuple[Message, ...], window: TextWindow | None = None) -> _Part:
        return _Part(messages, self._prompts(messages), window)

    def _asked_whole_or_in_windows(self, record: str | Mapping[str, Any] | Record) -> tuple[Record, tuple[_Part, ...]]:
        """A record, and what the model is asked about it. Raises RecordError."""
        record = make_record(record)
        windows = self._windows(record.messages)
        if not windows:
            return record, (self._part(record.messages),)
        parts = []
        for window in windows:
            with _placed(window):
                parts.append(self._part(_in_window(record.messages, window), window))
        return record, tuple(parts)

    def _explore_parts(
        self, parts: Sequence[_Part], *, evidence: bool = False
    ) -> list[tuple[Trees, float] | RecordError]:
        """Of each part the trees, and the number that `explore_with_evidence` has; or its error."""
        roots = max((sum(map(len, {part.root(q) for part in parts})) for q in self.questions), default=0)
        lengths = [part.n_own + ANSWER_ROOM for part in parts]
        room = room_of(self.backend) - roots
        found: list[tuple[Trees, float] | RecordError] = []
        for places in batches(lengths, most=self.runtime.together or 1, room=room):
            found += self._explore_batch([parts[i] for i in places], evidence=evidence)
        return found

    def _explore_batch(self, parts: Sequence[_Part], *, evidence: bool) -> list[tuple[Trees, float] | RecordError]:
        """As `_explore_parts`, of those that go through the model together, one question after the other."""
        trees: list[dict[str | None, Tree]] = [{} for _ in parts]
        errors: dict[int, RecordError] = {}
        n_ctx, n_vocab = self.backend.n_ctx, len(self.backend.vocabulary)
        for question in self.questions:
            live = [i for i in range(len(parts)) if i not in errors]
            steps = [exploring(self._judging(parts[i].messages), parts[i].prompts[question], **self._far) for i in live]
            for i, tree in zip(live, lockstep(self.backend.logprobs, steps, n_ctx=n_ctx, n_vocab=n_vocab), strict=True):
                if isinstance(tree, RecordError):
                    errors[i] = tree
                else:
                    trees[i][question] = tree
        sizes = dict.fromkeys(range(len(parts)), float("nan"))
        if evidence and (live := [i for i in range(len(parts)) if i not in errors]):
            ways = [self._way_to_label(parts[i].prompts[None], parts[i].messages) for i in live]
            for i, row in zip(live, self.backend.logits(ways), strict=True):
                sizes[i] = float(np.logaddexp.reduce(row.astype(np.float64)))
        return [errors[i] if i in errors else (trees[i], sizes[i]) for i in range(len(parts))]

    def _score_parts(
        self, record: Record, parts: Sequence[_Part], found: Sequence[tuple[Trees, float] | RecordError]
    ) -> Score:
        """What the parts say of their record. Raises RecordError."""
        scores = []
        for part, one in zip(parts, found, strict=True):
            with _placed(part.window):
                if isinstance(one, RecordError):
                    raise one
                estimates = estimate(one[0], self.estimator, umbrella=self.umbrella)
                scores.append(self._score(record, estimates, _tokens(part.prompts, one[0])))
        windows = [part.window for part in parts if part.window is not None]
        return _worst(scores, windows) if windows else scores[0]

    def _score_whole(self, record: Record, *, grows: bool = False) -> Score:
        prompts = self._prompts(record.messages, grows=grows)
        trees = {question: self._explore(prompt, record.messages) for question, prompt in prompts.items()}
        return self._score(record, estimate(trees, self.estimator, umbrella=self.umbrella), _tokens(prompts, trees))

    def _score_part(self, record: Record, window: TextWindow) -> Score:
        """As if a window were the record's whole text. Raises RecordError that says which window cannot be scored."""
        with _placed(window):
            return self._score_whole(replace(record, messages=_in_window(record.messages, window)))

    def refusal(self, found: Estimates) -> OffGrammar | None:
        """Why a record with these estimates gets an error in place of a score; None where it gets one."""
        mass = 1 - found.off_grammar
        if mass < self._min_mass:
            return OffGrammar(
                f"{mass:.3g} of the probability lies on answers that profile {self.profile.name} can read, "
                f"at least {self._min_mass:g} is needed; `edgeguard check` tells whether profile and model fit"
            )
        if not np.isfinite(found.margin):
            return OffGrammar("the model gives one side of the verdict no probability at all; there is no margin")
        return None

    def _score(self, record: Record, found: Estimates, tokens: dict[str, int]) -> Score:
        if (refused := self.refusal(found)) is not None:
            raise refused
        decided = self._decided(found)
        assert decided.bounds is not None
        limits = [*decided.bounds[0].tolist(), *found.bounds[found.safe + 1 :].tolist()]
        labels = (*decided.labels, *found.labels[found.safe + 1 :])
        return Score(
            id=record.id,
            **_said(found, decided),
            bounds={label: (low, high) for label, (low, high) in zip(labels, limits, strict=True)},
            unexplored=found.unexplored,
            off_grammar=found.off_grammar,
            estimator=self.estimator,
            calibrated=self.calibration is not None,
            guard=self.name,
            profile=self.profile.name,
            model_sha256=self.model_sha256,
            tokens=tokens,
            skipped=record.skipped,
        )

    def _decided(self, found: Estimates) -> Decisions:
        return decide(
            np.array([found.margin]),
            found.scores[None, : found.safe],
            labels=found.labels[: found.safe],
            calibration=self.calibration,
            thresholds=self.thresholds,
            bounds=found.bounds[None, : found.safe + 1],
        )

    def _judge(self, text: str) -> SelfTestResult:
        """What a score says, and what a score that is refused would have said."""
        messages = (Message("user", text),)
        with self._in_use():
            prompts = self._prompts(messages)
            trees = {question: self._explore(prompt, messages) for question, prompt in prompts.items()}
            decided_by = self.umbrella or max(trees, key=lambda question: log_odds(trees[question]))
            worst = max(trees, key=lambda question: trees[question].off_grammar)
            rows = {question: self.backend.logprobs([prompts[question]])[0] for question in {decided_by: 0, worst: 0}}
        found = estimate(trees, self.estimator, umbrella=self.umbrella)
        names_codes = None in trees and trees[None].safe > 1
        lower, upper = names_no_code(trees[None]).tolist() if names_codes else (0.0, 0.0)
        return SelfTestResult(
            text=text,
            **_said(found, self._decided(found)),
            no_code=(lower, upper) if names_codes else None,
            decided_by=decided_by,
            questions=tuple(self._asked(question, tree, rows.get(question)) for question, tree in trees.items()),
        )

    def _asked(self, question: str | None, tree: Tree, row: npt.NDArray[np.float32] | None) -> QuestionResult:
        """`row` is (n_vocab,), the log-probabilities of the answer's first token; None where nobody looks at them."""
        likeliest = [] if row is None else [int(t) for t in np.argsort(-row, kind="stable")[:5]]
        names = {i: name for name, i in self.backend.vocabulary.control.items()}
        return QuestionResult(
            question=question,
            unsafe=float(marginal(tree)[UNSAFE]),
            margin=log_odds(tree),
            grammar_mass=1 - tree.off_grammar,
            first_tokens=tuple(
                (names.get(t) or self.piece(t), float(np.exp(np.float64(row[t])))) for t in likeliest if row is not None
            ),
        )


def check_decisions(profile: Profile, calibration: Calibration | None, thresholds: Thresholds) -> None:
    """Refuse a threshold or a map for a label that the profile is not asked about. Raises ProfileError."""
    labels = ("unsafe", *(category.code for category in profile.asked))
    if unknown := set(thresholds.labels) - set(labels):
        raise ProfileError(
            f"a threshold is given for {', '.join(sorted(unknown))}, which profile {profile.name} has not; "
            f"its labels are {', '.join(labels)}"
        )
    if calibration and (unknown := set(calibration.maps) - set(labels)):
        raise ProfileError(
            f"{calibration.source or 'the calibration'} has a map for {', '.join(sorted(unknown))}, "
            f"which profile {profile.name} has not"
        )


def _worst(scores: Sequence[Score], windows: Sequence[TextWindow]) -> Score:
    """What the windows of one text say together: of each number the largest, of the codes at their threshold all.

    P(any window's answer names a label) is at least that, and nothing is known of how they depend on one another. The
    bounds are those of the largest: it lies between the largest of the lower ones and that of the upper ones.
    """
    first = max(range(len(scores)), key=lambda i: scores[i].margin)  # of several the first one
    worst = scores[first]
    named = {code for score in scores for code in score.categories}
    return replace(
        worst,
        flagged=any(score.flagged for score in scores),
        unsafe=max(score.unsafe for score in scores),
        categories=tuple(code for code in worst.category_scores if code in named),
        category_scores=_largest([score.category_scores for score in scores]),
        bounds={
            label: (max(s.bounds[label][0] for s in scores), max(s.bounds[label][1] for s in scores))
            for label in worst.bounds
        },
        fields={field: _largest([score.fields[field] for score in scores]) for field in worst.fields},
        unexplored=max(score.unexplored for score in scores),
        off_grammar=max(score.off_grammar for score in scores),
        tokens={part: sum(score.tokens[part] for score in scores) for part in worst.tokens},
        window=windows[first],
    )


def _largest(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {label: max(p[label] for p in each) for label in each[0]}


def _said(found: Estimates, decided: Decisions) -> dict[str, Any]:
    """What is said of one record, by the names that a Score and a SelfTestResult have for it."""
    p, counts = decided.y_prob[0].tolist(), decided.y_pred[0].tolist()
    return {
        "flagged": counts[UNSAFE],
        "unsafe": p[UNSAFE],
        "margin": found.margin,
        "categories": tuple(compress(decided.labels[1:], counts[1:])),
        "category_scores": dict(zip(decided.labels[1:], p[1:], strict=True)),
        "fields": {
            field: {name: float(found.scores[i]) for name, i in places.items()}
            for field, places in fields_of(found.labels).items()
        },
    }


def _tokens(prompts: Mapping[str | None, Prefix], trees: Trees) -> dict[str, int]:
    """Tokens of all prompts, those of them that are evaluated for others too, and those that were tried for answers."""
    seen: set[Prefix] = set()
    reused = 0
    for prompt in prompts.values():
        *between, root = [*prompt.lineage()][1:] or [Prefix(())]
        reused += len(root.tokens) + sum(len(p.tokens) for p in between if p in seen)
        seen.update(between)
    return {
        "prompt": sum(len(prompt.path()) for prompt in prompts.values()),
        "reused": reused,
        "answer": sum(tree.n_rows - 1 for tree in trees.values()),
    }


@dataclass(frozen=True)
class _Opened:
    """A model, and what is known of it: the built-in guard that it is, and which of its forms."""

    backend: Backend
    profile: Profile | None
    built: BuiltIn | None = None
    form: Form | None = None

    def calibration(self, estimator: str, tell: Tell) -> Path | bool:
        """The one that it comes with; False for none."""
        if self.built is None or self.form is None:
            return False
        found = self.built.calibration(self.form, estimator)
        if found is None:
            tell(
                f"no calibration of {estimator} was fitted for {self.built.called}:{self.form.name}; its scores are "
                "the model's own probabilities"
            )
        return found or False


@dataclass(frozen=True)
class _Asked:
    """What is asked for by `model`: a file or a folder, or where `path` is None the form of that name of a guard."""

    path: str | Path | None
    built: BuiltIn | None = None
    form: str | None = None


def _asked(model: str | Path | None, profile: Profile | None, runtime: RuntimeOptions) -> _Asked:
    found = find_form(model)
    if found is None:
        assert model is not None
        return _Asked(model)
    built, form = found
    if model is None and profile is not None and profile.name != built.profile:
        return _Asked(built.base_path)
    if runtime.lora is not None:  # somebody else's, in the place of the guard's own
        return _Asked(built.base_path, built)
    return _Asked(None, built, form)


def prepared(
    model: str | Path | None, profile: str | Path | Profile | None, runtime: RuntimeOptions, *, tell: Tell = in_log
) -> tuple[str | Path | None, Path]:
    """For who loads one guard in several processes: what each is to name as its model, and the file or folder it opens.

    A form of a built-in guard that is not there yet is made here, and a hub's model fetched: once. Raises what
    `Guard.load` does for these arguments, but for what it finds in the model's files.
    """
    given = profile if isinstance(profile, Profile) or profile is None else load_profile(profile)
    model = resolved(model, tell=tell)
    asked = _asked(model, given, runtime)
    if asked.path is not None:
        return model, Path(asked.path)
    assert asked.built is not None
    form = prepare(asked.built, asked.form, runtime, tell=tell)
    if form.name == ADAPTER:
        return f"{asked.built.called}:{ADAPTER}", asked.built.base_path
    return model, asked.built.form_folder(form)


def _open(model: str | Path | None, profile: Profile | None, runtime: RuntimeOptions, tell: Tell) -> _Opened:
    """What `Guard.load` says of `model`, with the profile that was given or that goes with it."""
    asked = _asked(resolved(model, tell=tell), profile, runtime)
    if profile is None and asked.built is not None:
        profile = load_profile(asked.built.profile)
    if asked.path is not None:
        return _Opened(open_backend(asked.path, runtime), profile, asked.built)
    assert asked.built is not None
    backend, opened = open_built_in(asked.built, asked.form, runtime, tell=tell)
    return _Opened(backend, profile, asked.built, opened)


def _detected(backend: Backend) -> Profile:
    info = backend.info
    name = detect_profile(architecture=info.architecture, name=info.name, chat_template=info.chat_template)
    if name is None:
        raise ProfileError(
            f"{info.path} ({info.name or 'no name'}) does not say for certain which guard it is; "
            "give a `profile`: a built-in's name, `instruct` for a general chat model, or a TOML file",
            kind="profile_not_told",
        )
    return load_profile(name)


def _calibration(
    given: str | Path | Calibration | bool, profile: Profile, estimator: str, backend: Backend
) -> Calibration | None:
    if isinstance(given, bool):  # there is none to go with a model file
        return None
    found = given if isinstance(given, Calibration) else read_calibration(given)
    found.check(profile=profile.name, estimator=estimator, model_sha256=backend.info.sha256)
    return found


def _with_text(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """The conversation, with another text in the place of the one that is judged."""
    return (*messages[:-1], replace(messages[-1], content=text))


def _in_window(messages: tuple[Message, ...], window: TextWindow) -> tuple[Message, ...]:
    return _with_text(messages, messages[-1].content[window.begin : window.end])


@contextlib.contextmanager
def _placed(window: TextWindow | None) -> Iterator[None]:
    """A RecordError of a window says of which; it stays the same kind of error, with what it knows."""
    try:
        yield
    except RecordError as error:
        if window is not None:
            place = f"window {window.number} of {window.of}, characters {window.begin} to {window.end}"
            error.args = (f"{place}: {error}",)
        raise


@dataclass(frozen=True, eq=False)
class _Part:
    """What the model is asked about at once: a record, or a window of it. A prompt for each question."""

    messages: tuple[Message, ...]
    prompts: Mapping[str | None, Prefix]
    window: TextWindow | None

    def root(self, question: str | None) -> tuple[int, ...]:
        """The preamble's tokens."""
        *_, root = self.prompts[question].lineage()
        return root.tokens

    @property
    def n_own(self) -> int:
        """Tokens of the longest prompt, without its preamble."""
        return max(sum(len(p.tokens) for p in [*prompt.lineage()][:-1]) for prompt in self.prompts.values())


def _or_error(make: Callable[..., T], *given: Any) -> T | RecordError:
    try:
        return make(*given)
    except RecordError as error:
        return error


def _digits(x: float) -> float:
    return float(f"{x:.7g}")
