"""How much a publisher sends: a density, a number of elements, bytes per time, or a bound on what is not sent yet.

The publisher asks after each optimizer step how many elements may move, and tells what came of it:

    due  ──>  moved  ──>  due  ──>  moved  ──>  ...  ──>  sent      (one append may carry the moves of many steps,
                                                                    and be told of many steps later)
"""

from __future__ import annotations

import math
import re
from collections import deque
from typing import Any, Protocol

from evergrad.errors import ConfigError

DEAREST_BYTES = 5  # an element costs 1 to 5 bytes on the wire: indices of 7 to 35 bits, and a sign
FRAME_BYTES = 128  # an update's header, and those of its sections
LEAST_BURST_BYTES = 1024
_HEADER_BYTES = 64
_BYTE_UNITS = {"B": 1, "kB": 1000, "MB": 1_000_000, "KiB": 1 << 10, "MiB": 1 << 20}
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_BURST_S = {"s": 10, "min": 60, "h": 3600}
_RATE = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_BYTE_UNITS)})\s*/\s*({'|'.join(_SECONDS)})", re.ASCII)


class Amount(Protocol):
    """Decides how many elements move at each optimizer step."""

    @property
    def needs_distance(self) -> bool:
        """Whether `moved` must be told the distance, which somebody has to measure."""
        ...

    def due(self, now_s: float) -> int:
        """How many elements may move now, at most; changes nothing that a second call would see.

        0: nothing moves, and what would go out with it (statistics of BatchNorm) waits too.

        Args:
            now_s: seconds, on the clock that `sent` is told by. One that is set back earns nothing meanwhile.
        """
        ...

    def moved(self, elements: int, distance: float | None) -> None:
        """Tells what an optimizer step came to, 0 elements included.

        Args:
            elements: how many moved, at most what was due.
            distance: |u - w| / |u| afterwards, in 2-norms (u: master, w: deployed); None or NaN: not known.
        """
        ...

    def sent(self, elements: int, update_bytes: int, now_s: float) -> None:
        """Tells of an append, in the order of the moves; it may carry those of several steps, or of none.

        Args:
            elements: the sum of what `moved` was told of the steps that it carries. Not what the update holds, which
                may be less (an element that moved twice) or more (statistics).
            update_bytes: all that was written.
            now_s: when this is told.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it has learned so far."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        ...


def amount_of(
    elements: int,
    *,
    density: float | None = None,
    k: int | None = None,
    budget: str | None = None,
    quality: float | None = None,
) -> Amount:
    """What decides how much moves, by the one setting that is given.

    Args:
        elements: those that can move, 1 or more.
        density: this fraction of them at each step, in (0, 1].
        k: so many at each step, 1 to `elements`.
        budget: bytes of updates per time, for example "20 kB/s"; see `ByteBudget`.
        quality: as few as keep |u - w| / |u| below this bound, in (0, 1); see `Quality`.

    Raises:
        ConfigError: none or several are given, or one is out of range.

    >>> amount_of(50_000, density=1e-3).due(0.0)
    50
    """
    settings = {"density": density, "k": k, "budget": budget, "quality": quality}
    given = [name for name, value in settings.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(
            " and ".join(given) or "density", "give exactly one of density, k, budget and quality: each decides alone"
        )
    if density is not None:
        if not 0 < density <= 1:
            raise ConfigError("density", f"must lie in (0, 1], not {density}")
        return Fixed(max(1, round(density * elements)))
    if k is not None:
        if not (isinstance(k, int) and 1 <= k <= elements):
            raise ConfigError("k", f"must be a whole number in 1 to {elements}, the elements that can move, not {k}")
        return Fixed(k)
    if budget is not None:
        bytes_per_s, burst_s = rate_of(budget)
        return ByteBudget(elements, bytes_per_s, max(LEAST_BURST_BYTES, bytes_per_s * burst_s))
    return Quality(elements, quality if quality is not None else math.nan)


def rate_of(text: str) -> tuple[float, float]:
    """Bytes a second, and for how many seconds they may be saved up: 10 where it is told per second, else one unit.

    Raises:
        ConfigError: it is no such text, or 0.

    >>> rate_of("20 kB/s"), rate_of("6 MiB/min")
    ((20000.0, 10), (104857.6, 60))
    """
    match = _RATE.fullmatch(text.strip()) if isinstance(text, str) else None
    rate = float(match[1]) * _BYTE_UNITS[match[2]] / _SECONDS[match[3]] if match else math.nan
    if match is None or not 0 < rate < math.inf:
        form = f"a number above 0, one of {', '.join(_BYTE_UNITS)}, and per {', '.join(_SECONDS)}"
        raise ConfigError("budget", f"must be bytes per time, for example '20 kB/s' ({form}), not {text!r}")
    return rate, _BURST_S[match[3]]


class Fixed:
    """The same number of elements at each step."""

    needs_distance = False

    def __init__(self, k: int) -> None:
        self._k = k

    def due(self, now_s: float) -> int:  # noqa: ARG002 - whenever it is
        return self._k

    def moved(self, elements: int, distance: float | None) -> None:
        """Nothing follows from it."""

    def sent(self, elements: int, update_bytes: int, now_s: float) -> None:
        """Nothing follows from it."""

    def state_dict(self) -> dict[str, Any]:
        """It has none."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing follows from it."""


class ByteBudget:
    """Keeps the bytes of all updates to a rate: a token bucket (RFC 2697, one rate and one size).

    In any time of t seconds at most `bytes_per_s` x t + `burst_bytes` are sent, however long and irregular the steps
    are, as long as an update takes at most `FRAME_BYTES`, and `DEAREST_BYTES` an element. That much is set aside for
    each move until its true bytes are told. What costs more (statistics of BatchNorm, float64) overdraws the bucket by
    just that, and is paid back before anything else moves: the average over long times holds in any case.

    Small updates are mostly header, so nothing moves until there is enough for one whose elements take about four times
    the bytes that every update costs; what those are is learned from `sent`. So a small budget at a high step rate
    sends every few steps. One move takes a part of the bucket only (the true price of an element against the dearest:
    about a quarter), so that what was saved in a pause is spread over some steps.

    The price of the guarantee: steps or appends that are further apart than about a quarter of the burst cannot use all
    of the budget. Tell it per minute or per hour then: "20 kB/s" saves up 10 seconds, "1.2 MB/min" one minute,
    "72 MB/h" one hour; 1 KiB at least.

    Args:
        elements: the most that can move.
        bytes_per_s: the rate.
        burst_bytes: the size of the bucket, which is full at first.
    """

    needs_distance = False

    def __init__(self, elements: int, bytes_per_s: float, burst_bytes: float) -> None:
        self.bytes_per_s, self.burst_bytes = bytes_per_s, burst_bytes
        self._elements, self._level, self._last_s = elements, burst_bytes, -math.inf
        self._flying: deque[int] = deque()  # elements of each move that no append was told of
        self._flying_elements = 0
        self._cost = _Cost()

    def due(self, now_s: float) -> int:
        self._fill(now_s)
        frame = max(FRAME_BYTES, self._cost.fixed)
        free = self._level - len(self._flying) * frame - self._flying_elements * DEAREST_BYTES
        if free < min(self.burst_bytes, frame + DEAREST_BYTES * 4 * self._cost.fixed / self._cost.element):
            return 0
        # Half of it where statistics alone would fill the bucket: the debt is theirs, and something has to move.
        return min(self._elements, int(max(free - frame, free / 2) / DEAREST_BYTES))

    def moved(self, elements: int, distance: float | None) -> None:  # noqa: ARG002 - however far it is
        if elements:
            self._flying.append(elements)
            self._flying_elements += elements

    def sent(self, elements: int, update_bytes: int, now_s: float) -> None:
        self._fill(now_s)
        self._level -= update_bytes
        if elements:
            self._cost.learn(elements, update_bytes)
        while elements and self._flying:
            landed = min(elements, self._flying[0])
            elements, self._flying_elements = elements - landed, self._flying_elements - landed
            self._flying[0] -= landed
            if not self._flying[0]:
                self._flying.popleft()

    def state_dict(self) -> dict[str, Any]:
        return {"level": self._level, "last_s": self._last_s, "flying": list(self._flying), "cost": vars(self._cost)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._level, self._last_s = state["level"], state["last_s"]
        self._flying = deque(state["flying"])
        self._flying_elements = sum(self._flying)
        vars(self._cost).update(state["cost"])

    def _fill(self, now_s: float) -> None:
        passed = now_s - self._last_s
        # A little earlier than before is another thread's look at the clock; much earlier is a clock that was set back.
        if passed > 0 or passed * self.bytes_per_s < -self.burst_bytes:
            self._level = min(self.burst_bytes, self._level + max(0.0, passed) * self.bytes_per_s)
            self._last_s = now_s


class _Cost:
    """Bytes of an update = `fixed` + `element` x elements: a line through what was sent, the newest counting most."""

    def __init__(self) -> None:
        self.fixed, self.element = float(_HEADER_BYTES), 1.0
        self._weight = self._mean_elements = self._mean_bytes = self._variance = self._covariance = 0.0

    def learn(self, elements: int, update_bytes: int, keep: float = 1 - 1 / 64) -> None:
        self._weight = self._weight * keep + 1
        off = elements - self._mean_elements
        self._mean_elements += off / self._weight
        self._mean_bytes += (update_bytes - self._mean_bytes) / self._weight
        self._variance = self._variance * keep + off * (elements - self._mean_elements)
        self._covariance = self._covariance * keep + off * (update_bytes - self._mean_bytes)
        # Updates of nearly one size do not tell the slope. Then all beyond a header is gradually taken for the
        # elements', which makes updates smaller, until their sizes differ enough to tell.
        most = (self._mean_bytes - _HEADER_BYTES) / max(1.0, self._mean_elements)
        if self._variance > self._weight * (0.1 * self._mean_elements) ** 2:
            slope = min(self._covariance / self._variance, most)
        else:
            slope = self.element + 0.02 * (most - self.element) if self._weight > 1 else most
        self.element = max(1.0, slope)
        self.fixed = max(float(_HEADER_BYTES), self._mean_bytes - self.element * self._mean_elements)


class Quality:
    """As few elements as keep the relative distance |u - w| / |u| below a bound.

    A proportional-integral controller of log k (velocity form), with 0.9 of the bound as its aim: k grows or shrinks by
    at most a quarter a step. Where training has moved nothing far enough, nothing is sent.

    Where the moves of a step share one scale, more elements can mean a larger distance, for what it cannot tell of
    them: elements that are far nearer than their mean stay where they are. So fewer moves than were due, at a distance
    that is too large, mean too many, and k falls to an eighth of those moves (as a sender's window does when
    packets are lost). A bound that no k can keep makes it search for the best one, up and down, for ever.

    Args:
        elements: the most that can move.
        bound: in (0, 1).
    """

    needs_distance = True
    _AIM, _GAIN, _HORIZON_STEPS, _FASTEST = 0.9, 0.1, 20, math.log(1.25)
    _TOO_FEW, _BACK = 0.8, 1 / 8

    def __init__(self, elements: int, bound: float) -> None:
        if not 0 < bound < 1:
            raise ConfigError("quality", f"must lie in (0, 1), not {bound}")
        self._elements, self._bound = elements, bound
        self._k = max(1.0, 1e-3 * elements)
        self._error: float | None = None

    def due(self, now_s: float) -> int:  # noqa: ARG002 - whenever it is
        return int(self._k)

    def moved(self, elements: int, distance: float | None) -> None:
        if distance is None or math.isnan(distance):
            return
        last, due = self._error, int(self._k)
        self._error = math.log(min(max(distance / (self._AIM * self._bound), 1e-3), 1e3))
        if self._error > 0 and due > 1 and elements < self._TOO_FEW * due:
            self._set(elements * self._BACK)
            return
        trend = 0.0 if last is None else self._error - last
        wanted = self._GAIN * (self._error + self._HORIZON_STEPS * trend)
        self._set(self._k * math.exp(min(max(wanted, -self._FASTEST), self._FASTEST)))

    def _set(self, k: float) -> None:
        self._k = min(max(k, 0.5), float(self._elements))  # below 1 is none, and not so far below that it cannot rise

    def sent(self, elements: int, update_bytes: int, now_s: float) -> None:
        """Nothing follows from it."""

    def state_dict(self) -> dict[str, Any]:
        return {"k": self._k, "error": self._error}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._set(state["k"])
        self._error = state["error"]
