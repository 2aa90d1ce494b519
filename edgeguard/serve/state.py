"""What a running server knows: its models, policies and keys, and what it is about to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeguard.errors import EdgeguardError, did_you_mean
from edgeguard.serve.categories import CategoryMap, load_categories
from edgeguard.serve.keys import Keys, read_keys
from edgeguard.serve.limits import ServeLimits
from edgeguard.serve.metrics import Metrics
from edgeguard.serve.policies import DecisionRule, Policy, check_policies, read_policies
from edgeguard.serve.refusal import Refusal
from edgeguard.serve.served import Opening, Queue, Served, open_served

Phase = Literal["loading", "ready", "draining"]
OPENAIS = ("omni-moderation-latest", "omni-moderation-2024-09-26", "text-moderation-latest", "text-moderation-stable")


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    categories   a table's name or file, for other names of the categories; None: the guard's own
    policy_file, api_key_file  read at the start, and again at SIGHUP
    allow_hosts  names that the Host header may have besides those of this machine
    origins      of web pages that may ask (CORS)
    log_text     the log has the texts; else nothing of what is judged is kept anywhere
    self_tested  models are served when they tell their profile's two texts apart
    """

    openings: tuple[Opening, ...]
    host: str = "127.0.0.1"
    port: int = 8080
    limits: ServeLimits = field(default_factory=ServeLimits)
    categories: str | Path | None = None
    policy_file: Path | None = None
    api_key_file: Path | None = None
    allow_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    log_text: bool = False
    self_tested: bool = True

    @property
    def is_local(self) -> bool:
        """Whether nothing but this machine can reach it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address or a name is this machine's own."""
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdigit())


@dataclass
class State:
    """Of one server. Changed in the event loop alone.

    log   gets one mapping for each request; tell gets lines for people
    """

    options: ServeOptions
    log: Callable[[Mapping[str, Any]], None]
    tell: Callable[[str], None]
    metrics: Metrics = field(default_factory=Metrics)
    phase: Phase = "loading"
    served: dict[str, Served] = field(default_factory=dict)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    decisions: Mapping[tuple[str, str], DecisionRule] = field(default_factory=dict)
    keys: Keys | None = None
    names: CategoryMap | None = None
    in_hand: int = 0
    queue: Queue = field(init=False)

    def __post_init__(self) -> None:
        self.queue = Queue(self.options.limits.queue)

    def read_files(self) -> None:
        """The tables and the keys, before a model is loaded. Raises ProfileError, CalibrationError."""
        options = self.options
        if options.api_key_file is not None:
            self.keys = read_keys(options.api_key_file)
        if options.policy_file is not None:
            self.policies = read_policies(options.policy_file)
        if options.categories is not None:
            self.names = load_categories(options.categories)

    async def load(self) -> None:
        """Open the models; the server is ready after it. Raises EdgeguardError."""
        self.served = await asyncio.to_thread(self._open)
        self.decisions = check_policies(self.policies, {name: one.workers for name, one in self.served.items()})
        self.metrics.watch(self.served, lambda: self.queue.records)
        if self.phase == "loading":
            self.phase = "ready"

    def _open(self) -> dict[str, Served]:
        options = self.options
        found = open_served(options.openings, names=self.names, self_tested=options.self_tested, tell=self.tell)
        if self.phase == "draining":  # nobody waits for it any more
            for served in found.values():
                served.workers.close()
        return found

    async def reload(self) -> None:
        """Read the policies and the keys again. A mistake leaves all as it was, and is told."""
        try:
            keys, policies, decisions = await asyncio.to_thread(self._read_again)
        except EdgeguardError as error:
            self.metrics.reloaded("kept_old")
            self.tell(f"nothing was taken over, the policies and keys before stay: {error}")
            return
        self.keys, self.policies, self.decisions = keys, policies, decisions
        self.metrics.reloaded("taken")
        self.tell(f"read again: {len(policies)} policies" + ("" if keys is None else f", {len(keys.digests)} keys"))

    def _read_again(self) -> tuple[Keys | None, Mapping[str, Policy], Mapping[tuple[str, str], DecisionRule]]:
        options = self.options
        keys = None if options.api_key_file is None else read_keys(options.api_key_file)
        policies = {} if options.policy_file is None else read_policies(options.policy_file)
        decisions = check_policies(policies, {name: one.workers for name, one in self.served.items()})
        return keys, policies, decisions

    def chosen(self, model: str | None, policy: str | None) -> tuple[Served, Policy | None, DecisionRule | None]:
        """The model and the policy of a request. Raises Refusal.

        model   a name, NAME@POLICY, @POLICY, or one of OpenAI's names, which stand for the default
        policy  named beside it; both must agree
        """
        name, at, named = _parted(model or "", self.served)
        if at and policy is not None and policy != named:
            raise Refusal(
                400,
                "two_policies",
                f"model names policy {named!r}, and the request {policy!r}; name one",
                param="model",
            )
        served = self._served(name)
        policy = named if at else policy
        if policy is None:
            return served, None, None
        decision = self.decisions.get((policy, served.name))
        if decision is None:
            there = [p for p, m in self.decisions if m == served.name]
            raise Refusal(
                404,
                "policy_not_found",
                f"there is no policy {policy!r} for {served.name}{did_you_mean(policy, there)}; "
                f"there are {', '.join(there) or 'none'}",
                param="model" if at else "policy",
            )
        return served, self.policies[policy], decision

    def _served(self, name: str) -> Served:
        if not name or (name in OPENAIS and name not in self.served):
            return next(iter(self.served.values()))
        if name not in self.served:
            raise Refusal(
                404,
                "model_not_found",
                f"there is no model {name!r}{did_you_mean(name, self.served)}; served are {', '.join(self.served)}, "
                "and a request without a model goes to the first",
                param="model",
            )
        return self.served[name]

    def close(self) -> None:
        """End the workers."""
        for served in self.served.values():
            served.workers.close()


def _parted(model: str, served: Collection[str]) -> tuple[str, str, str]:
    """Name, "@", policy. A served model's own name may have an @ in it, as a pinned version has; a policy has none."""
    name, at, policy = model.rpartition("@")
    return (name, at, policy) if at and model not in served else (model, "", "")
