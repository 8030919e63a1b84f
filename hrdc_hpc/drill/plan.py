"""Which faults come in which order, at whom and when: a function of the seed alone. Torch-free.

What is not: how fast the machine is. A moment is a number of steps or the begin of a phase, and then a share of a short
time; how far the ranks are by then differs from one drill to the next.
"""

from __future__ import annotations

import random
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from hrdc_hpc.drill.kinds import KINDS, Phase, Site

WAYS = ("flipped byte", "cut short", "file lost")
"""How a checkpoint is damaged."""
_WITHIN_SAVES = 2.5
"""In training, faults strike within so many intervals of checkpoints after a start."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault to come."""

    number: int
    kind: str
    phase: Phase
    steps: int
    """Training: strike once the attempt has made so many; save and evaluate: the first (0) or second (1) one."""
    share: float
    """And then so much of the phase's short time later, 0 to 1."""
    target: float
    """The rank, as a share of their number, 0 to 1."""
    way: str
    """Of damage; the half of a file in which it is, and more of that sort, come from `share`."""

    def rank(self, world_size: int) -> int:
        """Which rank is hit."""
        return int(self.target * world_size)


def counts(kills: int, wanted: str | None, site: Site, options: Container[str] = ()) -> dict[str, int]:
    """Return how many faults of which kind: `kills` in all, spread evenly where no number is given.

    Args:
        kills: the number of faults.
        wanted: 'kill-rank=20,cancel', or None for all kinds that need nothing special.
        site: where the drill runs.
        options: of the command line that were given, which some kinds need.
    """
    given: dict[str, int | None] = {}
    for word in wanted.split(",") if wanted else _usual(site, options):
        name, equals, number = word.strip().partition("=")
        if name not in KINDS or site not in KINDS[name].sites:
            known = ", ".join(name for name, kind in KINDS.items() if site in kind.sites)
            raise ValueError(f"--kinds: got {name!r}; known here: {known}")
        if (needs := KINDS[name].needs) and needs not in options:
            raise ValueError(f"--kinds: {name} needs {needs} (see --help)")
        if equals and not number.isdecimal():
            raise ValueError(f"--kinds: got {word.strip()!r}; give a number, as in {name}=20")
        given[name] = int(number) if equals else None
    fixed = sum(number or 0 for number in given.values())
    open_ = [name for name, number in given.items() if number is None]
    if fixed > kills or (not open_ and fixed != kills):
        raise ValueError(f"--kinds: {fixed} faults, but --kills {kills}; let them agree")
    left = kills - fixed
    shares = {name: left // len(open_) + (place < left % len(open_)) for place, name in enumerate(open_)}
    found = {name: shares[name] if number is None else number for name, number in given.items()}
    return {name: number for name, number in found.items() if number}


def make_plan(numbers: Mapping[str, int], seed: int, every_steps: int) -> list[Fault]:
    """Return the faults in order. `every_steps`: between two checkpoints.

    Those for a run that is down come right behind one that ends an attempt; ValueError if there is none.
    """
    chance = random.Random(seed)
    running = [name for name, number in numbers.items() for _ in range(number) if not KINDS[name].down]
    down = [name for name, number in numbers.items() for _ in range(number) if KINDS[name].down]
    chance.shuffle(running)
    chance.shuffle(down)
    ending = [place for place, name in enumerate(running) if KINDS[name].ends]
    if down and not ending:
        raise ValueError(f"--kinds: {down[0]} needs a run that is down; add a kind that ends an attempt, e.g. kill-all")
    behind: dict[int, list[str]] = {}
    while down:
        for place in chance.sample(ending, min(len(ending), len(down))):
            behind.setdefault(place, []).append(down.pop())
    order = [name for place, kind in enumerate(running) for name in (kind, *behind.get(place, ()))]
    return [_draw(number, name, chance, every_steps) for number, name in enumerate(order, 1)]


def _usual(site: Site, options: Container[str]) -> Iterable[str]:
    usual = [(name, kind) for name, kind in KINDS.items() if site in kind.sites and not kind.extra]
    return [name for name, kind in usual if kind.needs is None or kind.needs in options]


def _draw(number: int, name: str, chance: random.Random, every_steps: int) -> Fault:
    phase = chance.choice(KINDS[name].phases)
    in_training = chance.randrange(1, max(2, int(_WITHIN_SAVES * every_steps)))
    nth = chance.randrange(2)
    return Fault(
        number=number, kind=name, phase=phase, steps=in_training if phase == "train" else nth, share=chance.random(),
        target=chance.random(), way=chance.choice(WAYS),
    )  # fmt: skip
