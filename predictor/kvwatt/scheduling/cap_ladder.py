"""Admission by reservation: GSA's geometric caps without its kills, and what became of them in a live server.

Who waits starts when, with what everybody inside is expected to still make, no overflow is near (PROJ).
What is expected is a rule's to say: `Ladder`, a cap that doubles in place where it is reached (arXiv
2601.22996), or `remaining.LearnedLengths`. With a `horizon`, an overflow later than so many steps holds
nobody: a whole reservation leaves memory empty that others could use in the meantime, and one preempted
after a long while has paid its way. Whom to preempt is left to the engine, whose own preemption stays as
the backstop. No numpy: this runs inside vLLM.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from kvwatt.scheduling.proj import peak_of, peak_tokens
from kvwatt.scheduling.remaining import Remaining

# Steps that a newcomer should live before an overflow: chosen in replay on seeds that are not scored
# (docs/scheduling.md); 16 to 64 do about the same.
HORIZON_STEPS = 32


@dataclass(frozen=True, slots=True)
class Ladder:
    """`first_cap_tokens`: output reserved for a new request; each further rung is `growth` times higher."""

    first_cap_tokens: int = 256
    growth: float = 2.0

    def __post_init__(self) -> None:
        if self.first_cap_tokens < 1 or not self.growth > 1.0:
            raise ValueError(
                f"first_cap_tokens must be >= 1 and growth > 1, got {self.first_cap_tokens} and {self.growth}"
            )

    def cap(self, output_tokens: int, max_tokens: int) -> int:
        """The lowest rung above what was produced, never above what may be produced."""
        rung = float(self.first_cap_tokens)
        while rung <= output_tokens:
            rung *= self.growth
        return max(min(int(rung), max_tokens), output_tokens + 1)

    def left(self, output_tokens: int, max_tokens: int) -> int:
        """Tokens to the cap."""
        return self.cap(output_tokens, max_tokens) - output_tokens

    def reserved(self, held: Sequence[int], outputs: Sequence[int], limits: Sequence[int]) -> int:
        """Peak KV tokens if everybody runs up to its cap; shapes (n,).

        `held`: KV tokens now, `outputs`: tokens produced, `limits`: max_tokens.
        """
        return peak_tokens(held, [self.left(o, m) for o, m in zip(outputs, limits, strict=True)])


class Admission:
    """Who of those that wait may start now, asked in their order. Built anew for a step; no state.

    `held`, `outputs`, `limits`: KV tokens, tokens made and max_tokens of everyone who runs. `priorities`
    as vLLM's, the lower the more urgent: one who waits is not held on account of the less urgent, whom the
    engine preempts first. `horizon`: in steps, None looks to everybody's end.
    """

    def __init__(
        self,
        rule: Remaining,
        capacity_tokens: int,
        held: Sequence[int],
        outputs: Sequence[int],
        limits: Sequence[int],
        priorities: Sequence[int] | None = None,
        horizon: int | None = None,
    ) -> None:
        if horizon is not None and horizon < 1:
            raise ValueError(f"horizon must be at least 1 step or None, got {horizon}")
        self._rule, self._capacity, self._horizon = rule, capacity_tokens, horizon
        ranks = priorities if priorities is not None else [0] * len(held)
        rows = zip(held, outputs, limits, ranks, strict=True)
        # Negative left first: ascending order is PROJ's.
        self._inside = sorted((-self._left(o, m), h, rank) for h, o, m, rank in rows)

    def _left(self, output_tokens: int, max_tokens: int) -> int:
        left = self._rule.left(output_tokens, max_tokens)
        return left if self._horizon is None else min(left, self._horizon)

    def admits(self, prompt_tokens: int, output_tokens: int, max_tokens: int, priority: int = 0) -> bool:
        """Whether one more fits beside all who are as urgent; if so, it is counted in.

        An engine that runs nothing always admits: waiting would never end.
        """
        newcomer = (-self._left(output_tokens, max_tokens), prompt_tokens + output_tokens, priority)
        insort(self._inside, newcomer)
        if len(self._inside) > 1 and self._peak(priority) > self._capacity:
            self._inside.remove(newcomer)
            return False
        return True

    def _peak(self, priority: int) -> int:
        return peak_of((-minus_left, held) for minus_left, held, rank in self._inside if rank <= priority)
