"""The cap ladder: GSA's geometric reservation without its kills, for a live server.

Each request reserves KV up to a cap. One is admitted only if all fit up to their caps (PROJ); at its cap
a request doubles it in place. Whom to preempt if all climb at once is left to the engine, whose own
preemption stays as the backstop. With unknown lengths this keeps most of the memory in use without the
overflow that first-come-first-served runs into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvwatt.scheduling.proj import peak_tokens


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

    def reserved(self, held: Sequence[int], outputs: Sequence[int], limits: Sequence[int]) -> int:
        """Peak KV tokens if everybody runs up to its cap; shapes (n,).

        `held`: KV tokens now, `outputs`: tokens produced, `limits`: max_tokens.
        """
        left = [self.cap(o, m) - o for o, m in zip(outputs, limits, strict=True)]
        return peak_tokens(held, left)


class Admission:
    """How many of those who wait may start now, in their order. Built anew for a step; no state."""

    def __init__(
        self,
        ladder: Ladder,
        capacity_tokens: int,
        held: Sequence[int],
        outputs: Sequence[int],
        limits: Sequence[int],
    ) -> None:
        self._ladder, self._capacity = ladder, capacity_tokens
        self._held = list(held)
        self._left = [ladder.cap(o, m) - o for o, m in zip(outputs, limits, strict=True)]

    def admits(self, prompt_tokens: int, output_tokens: int, max_tokens: int) -> bool:
        """Whether one more fits beside all others up to their caps; if so, it is counted in.

        An engine that runs nothing always admits: waiting would never end.
        """
        held = prompt_tokens + output_tokens
        left = self._ladder.cap(output_tokens, max_tokens) - output_tokens
        if self._held:
            peak = peak_tokens([*self._held, held], [*self._left, left])
            if peak > self._capacity:
                return False
        self._held.append(held)
        self._left.append(left)
        return True
