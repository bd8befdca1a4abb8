"""Who may set clocks, and until when. Pure: time is an argument (monotonic seconds)."""

from __future__ import annotations

from kvwattd.guard.protocol import Code, GuardError

# The reset begins this early, so that clocks are at default when the lease is over.
RESET_ALLOWANCE_RATIO = 0.1


class Lease:
    """One holder at a time; an overdue holder keeps its place until another asks for it."""

    def __init__(self, duration_s: float) -> None:
        self.duration_s = duration_s
        self.expirations = 0
        self._holder: int | None = None
        self._until_s = 0.0
        self._must_set = False  # clocks were reset under the holder: it has to learn of that

    @property
    def holder(self) -> int | None:
        return self._holder

    def remaining_s(self, now_s: float) -> float | None:
        """None without a holder; never negative."""
        return None if self._holder is None else max(0.0, self._until_s - now_s)

    def take(self, connection: int, now_s: float) -> None:
        """Raises GuardError(busy) while another holder's lease runs."""
        if self._holder not in (None, connection) and now_s < self._until_s:
            raise GuardError(
                Code.BUSY, f"another controller holds the lease for {self._until_s - now_s:.1f} s"
            )
        self._holder = connection
        self._must_set = False
        self._extend(now_s)

    def renew(self, connection: int, now_s: float) -> None:
        """Raises GuardError: not_controller, or lease_expired when clocks were reset meanwhile."""
        self._require(connection)
        if self._must_set:
            raise GuardError(Code.LEASE_EXPIRED, "the lease ran out and clocks were reset; set them again")
        self._extend(now_s)

    def command(self, connection: int, now_s: float) -> None:
        """A set or reset renews too, and settles an expiry: it says anew what is wanted."""
        self._require(connection)
        self._must_set = False
        self._extend(now_s)

    def expire(self, now_s: float, clocks_set: bool) -> bool:
        """True once when the lease has run out with clocks set: they must be reset now."""
        overdue = self._holder is not None and now_s >= self._until_s
        if not (overdue and clocks_set) or self._must_set:
            return False
        self._must_set = True
        self.expirations += 1
        return True

    def release(self, connection: int) -> bool:
        """True when `connection` was the holder."""
        if self._holder != connection:
            return False
        self._holder = None
        self._must_set = False
        return True

    def _require(self, connection: int) -> None:
        if self._holder != connection:
            raise GuardError(
                Code.NOT_CONTROLLER, "this connection does not control; say hello with role=control"
            )

    def _extend(self, now_s: float) -> None:
        self._until_s = now_s + self.duration_s * (1.0 - RESET_ALLOWANCE_RATIO)
