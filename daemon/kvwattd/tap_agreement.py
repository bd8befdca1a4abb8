"""Does the tap tell of as many generated tokens as the metrics page counts?

A page is asked for at one moment, made by the server a little later and read later still; on a starved
machine seconds lie between. A step that ended in between may be in the page or not. It is booked so that both
agree, as far as it goes, and what was not in this page is in the next: a slow scrape is no disagreement, and
a tap that tells too much or too little is found out all the same. Pure: times are passed in.
"""

from __future__ import annotations

import math
from collections import deque

from kvwatt.state import EngineSnapshot

COMPARED_OVER_S = 5.0
MIN_TOKENS = 100.0  # fewer say more about when the page was taken than about the tap
TOLERANCE = 0.2
RECORDS_KEPT = 4096  # what is older was sent before any page that may come


class Agreement:
    """Feed `on_tokens` and `on_page`; `agrees` is None until enough was compared."""

    def __init__(self) -> None:
        self.agrees: bool | None = None
        self._told = self._counted = 0.0
        self._since: deque[tuple[float, float]] = deque()  # when a record was sent, and its tokens
        self._sure = 0.0  # tokens that the next page has and the one before had not
        self._unsure = 0.0  # sent while the first page was made
        self._begun = False

    def restart(self) -> None:
        """Another engine run: what was compared so far says nothing any more."""
        self.agrees, self._begun = None, False
        self._told = self._counted = self._sure = self._unsure = 0.0

    def on_tokens(self, tokens: float, sent_s: float) -> None:
        """Generated tokens that a record told of."""
        self._since.append((sent_s, tokens))
        if len(self._since) > RECORDS_KEPT:
            self._sure += self._since.popleft()[1]

    def on_page(self, old: EngineSnapshot | None, page: EngineSnapshot) -> None:
        """The newest page, and the one before. The first one only sets the beginning."""
        before = sum(tokens for sent_s, tokens in self._since if sent_s <= page.observed_s)
        amid = sum(tokens for sent_s, tokens in self._since if sent_s > page.observed_s)
        self._since.clear()
        if old is None or not self._begun:
            self._begun, self._sure, self._unsure = old is not None, 0.0, amid
            return
        counted = max(page.generation_tokens_total - old.generation_tokens_total, 0.0)
        least, most = self._sure + before, self._sure + before + self._unsure + amid
        told = min(max(counted, least), most)
        # Of the doubtful tokens the earlier ones were booked first.
        self._sure, self._unsure = min(most - told, amid), 0.0
        keep = math.exp(-(page.observed_s - old.observed_s) / COMPARED_OVER_S)
        self._told, self._counted = self._told * keep + told, self._counted * keep + counted
        larger = max(self._told, self._counted)
        if larger >= MIN_TOKENS:  # trust is won and lost on enough tokens; what is less changes nothing
            self.agrees = abs(self._told - self._counted) <= TOLERANCE * larger

    def __str__(self) -> str:
        return f"{self._told:.0f} tokens told, {self._counted:.0f} counted"
