"""Pieces of source: cut from files, cleared of near-duplicates, and drawn evenly over families."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flashsvd.demo.corpus import SourceFile, stable_hash

MAX_HEADERS = 3
SHINGLE_LINES = 3
DUPLICATE_CONTAINMENT = 0.5


@dataclass(frozen=True)
class Piece:
    """Consecutive lines of one file, which the `class` and `def` lines that enclose them may precede."""

    text: str
    family: str
    source: str
    n_headers: int = 0

    @property
    def body(self) -> str:
        """The consecutive lines alone."""
        return self.text.split("\n", self.n_headers)[-1]


def enclosing_headers(lines: Sequence[str]) -> list[tuple[int, ...]]:
    """For each line, the indices of the `class` and `def` lines around it, outermost first, at most three.

    Read off the indentation alone, so that it works on code that does not parse.

    >>> enclosing_headers(["class A:", "    def f(self):", "        return 1", "x = 2"])
    [(), (0,), (0, 1), ()]
    """
    open_headers: list[tuple[int, int]] = []
    enclosing = []
    for index, line in enumerate(lines):
        code = line.lstrip()
        if code:
            indent = len(line) - len(code)
            while open_headers and open_headers[-1][0] >= indent:
                open_headers.pop()
        enclosing.append(tuple(header for _, header in open_headers[-MAX_HEADERS:]))
        if code.startswith(("class ", "def ", "async def ")):
            open_headers.append((indent, index))
    return enclosing


def cut_pieces(
    file: SourceFile,
    count_tokens: Callable[[list[str]], list[int]],
    *,
    low: int,
    high: int,
    seed: int = 0,
    with_headers: bool = True,
) -> list[Piece]:
    """Cut a file into consecutive, non-overlapping runs of whole lines, each below its enclosing headers if wanted.

    A piece holds `low` to `high` tokens, headers included; `count_tokens` maps lines to their token counts.
    Lengths are drawn from a generator seeded by the file's path, so a file is cut the same way whatever else
    is in the corpus.
    """
    draw = random.Random(stable_hash(seed, file.path))
    lines = file.lines
    counts = count_tokens(lines)
    headers = enclosing_headers(lines) if with_headers else [()] * len(lines)
    pieces = []
    start = 0
    while start < len(lines):
        target = draw.randint(low, high)
        used = sum(counts[header] for header in headers[start])
        end = start
        while end < len(lines) and used + counts[end] <= target:
            used += counts[end]
            end += 1
        body = "".join(lines[start:end]).strip("\n")
        if used >= low and body.strip():
            context = "".join(lines[header] for header in headers[start])
            pieces.append(Piece(context + body, file.family or "", file.path, len(headers[start])))
        start = max(end, start + 1)
    return pieces


def shingles(text: str, size: int = SHINGLE_LINES) -> set[tuple[str, ...]]:
    """Every run of `size` consecutive lines, blank lines dropped and white space collapsed.

    >>> shingles("a = 1\\n\\n  b  = 2\\nc = 3", size=2) == {("a = 1", "b = 2"), ("b = 2", "c = 3")}
    True
    """
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return {tuple(lines[start : start + size]) for start in range(max(1, len(lines) - size + 1))}


def duplicate_rule(threshold: float = DUPLICATE_CONTAINMENT) -> str:
    """What `drop_near_duplicates` does, in the words of a model card."""
    return (
        f"an evaluation piece is dropped when {threshold:.0%} or more of its shingles ({SHINGLE_LINES} consecutive "
        "non-blank lines, white space collapsed) occur in the training half or in an earlier piece."
    )


def drop_near_duplicates(
    pieces: Iterable[Piece], training: Iterable[SourceFile], *, threshold: float = DUPLICATE_CONTAINMENT
) -> tuple[list[Piece], int]:
    """The pieces that are new, and how many were removed.

    A piece goes when at least `threshold` of its shingles occur anywhere in the training half, or in a piece
    kept before it. Containment, not Jaccard similarity, because training sees every window of every file: a
    copied function counts however long the file it was copied into.
    """
    seen: set[tuple[str, ...]] = set()
    for file in training:
        seen |= shingles(file.text)
    kept = []
    removed = 0
    for piece in pieces:
        own = shingles(piece.body)
        if len(own & seen) >= threshold * len(own):
            removed += 1
            continue
        seen |= own
        kept.append(piece)
    return kept, removed


def stratify(
    pieces: Iterable[Piece], families: Sequence[str], per_family: int, *, seed: int = 0
) -> list[Piece]:
    """At most `per_family` pieces of each family, from its files in turn so that no long file dominates."""
    chosen: list[Piece] = []
    pieces = list(pieces)
    for family in families:
        by_file: dict[str, list[Piece]] = defaultdict(list)
        for piece in pieces:
            if piece.family == family:
                by_file[piece.source].append(piece)
        queues = []
        for source in sorted(by_file, key=lambda name: stable_hash(seed, name)):
            queue = by_file[source]
            random.Random(stable_hash(seed, source)).shuffle(queue)
            queues.append(queue)
        taken: list[Piece] = []
        while len(taken) < per_family and any(queues):
            for queue in queues:
                if queue and len(taken) < per_family:
                    taken.append(queue.pop())
        chosen += taken
    return chosen
