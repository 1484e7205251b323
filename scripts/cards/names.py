"""Names of authors: which are of persons, and which part of those is the family's."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

PARTICLES = frozenset({
    "af", "al", "ben", "bin", "da", "dal", "de", "del", "della", "der", "di", "do", "dos", "du", "el",
    "la", "le", "ten", "ter", "van", "von", "zu", "zur",
})  # fmt: skip
"""Words before a family name that belong to it; written small."""
SUFFIXES = frozenset(("Jr.", "Sr.", "II", "III", "IV"))
OF_ORGANISATIONS = frozenset({
    "AI", "Academy", "Authors", "Center", "Centre", "Community", "Company", "Consortium", "Contributors",
    "Corporation", "Corp", "Developers", "Facebook", "Foundation", "Google", "Group", "Hub", "Inc",
    "Institute", "Lab", "Laboratory", "Labs", "Limited", "Ltd", "Meta", "Microsoft", "Network", "NVIDIA",
    "OpenMMLab", "Project", "Qualcomm", "Research", "School", "Society", "Team", "Technologies",
    "Ultralytics", "University",
})  # fmt: skip
"""Words that no person is called."""


@dataclass(frozen=True)
class Person:
    """A person's name in the parts that bibliographies sort by."""

    given: str
    particle: str
    family: str
    suffix: str

    @property
    def whole_family(self) -> str:
        """`van der Maaten`."""
        return f"{self.particle} {self.family}".strip()


@functools.lru_cache(maxsize=4096)
def person(name: str) -> Person | None:
    """The parts of `Given van der Family Jr.`; None for an organisation.

    An organisation has one word, a comma, an `and`, a word in capitals alone or one that no person is called.
    """
    words = name.split()
    bare = {re.sub(r"[^\w-]", "", word) for word in words}
    if len(words) < 2 or "," in name or "and" in words or "&" in words or bare & OF_ORGANISATIONS:
        return None
    suffix = words.pop() if words[-1] in SUFFIXES and len(words) > 2 else ""
    first = next((i for i, word in enumerate(words[1:-1], 1) if word in PARTICLES), len(words) - 1)
    last = first
    while last < len(words) - 1 and words[last] in PARTICLES:
        last += 1
    return Person(" ".join(words[:first]), " ".join(words[first:last]), " ".join(words[last:]), suffix)
