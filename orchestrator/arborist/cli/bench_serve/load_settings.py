"""What a load consists of; the same for every point that is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from arborist.cli.bench_serve.load_request import Cancel, LoadRequest
from arborist.client.prompt import Prompt, Speculation


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What is asked, how often, for how long.

    Attributes:
        num_requests: Requests of a run; None = as many as fit into duration_s.
        duration_s: Seconds after which a run ends and what is under way is cancelled; None = once
            every request has ended.
        warm_up: Requests sent before a run that do not count.
        max_tokens: Most tokens per output.
        temperature: 0 = greedy.
        seed: Of prompts' order, arrivals, cancellations and sampling.
        ignore_eos: Outputs go on to max_tokens.
        timeout_s: Deadline of a request, in seconds.
        cancel_share: Share of requests whose client leaves early, in [0, 1]; half of them before
            the first token.
        max_in_flight: Most requests under way in an open loop; what comes on top is not sent and
            counted as CLIENT_LIMIT.
    """

    num_requests: int | None
    duration_s: float | None
    warm_up: int
    max_tokens: int
    temperature: float
    seed: int
    ignore_eos: bool
    timeout_s: float
    cancel_share: float
    max_in_flight: int

    def requests(
        self, prompts: Sequence[Prompt], speculation: Speculation | None, stream: int
    ) -> Iterator[LoadRequest]:
        """Yields the requests of a run; the same settings and stream give the same requests.

        Args:
            prompts: Taken in an order drawn from the seed, again and again.
            speculation: Drafting of all of them.
            stream: Number of the run: repetitions send other orders, points of one repetition
                the same.
        """
        rng = np.random.default_rng([self.seed, stream])
        order = rng.permutation(len(prompts))
        index = 0
        while self.num_requests is None or index < self.num_requests:
            yield LoadRequest(
                index,
                prompts[int(order[index % len(prompts)])],
                self.max_tokens,
                self.temperature,
                (self.seed + index) & 0xFFFF_FFFF_FFFF_FFFF if self.temperature else None,
                speculation,
                self.ignore_eos,
                self.timeout_s,
                self._cancel(rng),
            )
            index += 1

    def _cancel(self, rng: np.random.Generator) -> Cancel | None:
        leaves, early, share = rng.random(3)
        if leaves >= self.cancel_share:
            return None
        return Cancel("prefill" if early < 0.5 else "decode", float(share))


def arrivals_s(rate_per_s: float, seed: int) -> Iterator[float]:
    """Yields when requests of an open loop are due: a Poisson process.

    Args:
        rate_per_s: Mean requests per second, > 0.
        seed: Same seed, same times.
    Yields:
        Seconds since the beginning, ascending.
    """
    rng = np.random.default_rng([seed, 1 << 32])
    due_s = 0.0
    while True:
        due_s += float(rng.exponential(1.0 / rate_per_s))
        yield due_s
