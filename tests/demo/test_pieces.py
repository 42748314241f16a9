"""Pieces are whole lines under their headers, new to the evaluation half, and spread over families and files."""

from __future__ import annotations

from pathlib import Path

from flashsvd.demo.corpus import SourceFile, read_sources, split_by_file
from flashsvd.demo.pieces import Piece, cut_pieces, drop_near_duplicates, stratify


def count_words(lines: list[str]) -> list[int]:
    return [len(line.split()) for line in lines]


def pieces_of(file: SourceFile, seed: int = 0) -> list[Piece]:
    return cut_pieces(file, count_words, low=10, high=30, seed=seed)


def test_a_piece_is_consecutive_lines_below_its_headers(fake_stdlib: Path) -> None:
    file = next(file for file in read_sources(fake_stdlib) if file.family == "asyncio")
    pieces = pieces_of(file)
    assert len(pieces) > 3
    for piece in pieces:
        assert 10 <= len(piece.text.split()) <= 30
        assert piece.text in file.text or piece.text.startswith("class Thing:\n")
        assert piece.body in file.text
    assert pieces == pieces_of(file)
    assert pieces != pieces_of(file, seed=1)


def test_without_headers_a_piece_is_text_of_its_file(fake_stdlib: Path) -> None:
    file = next(file for file in read_sources(fake_stdlib) if file.family == "asyncio")
    pieces = cut_pieces(file, count_words, low=10, high=30, with_headers=False)
    assert len(pieces) > 3
    for piece in pieces:
        assert piece.text == piece.body and piece.text in file.text


def test_a_line_longer_than_a_piece_is_passed_over() -> None:
    text = "a b c d e f\n" * 3 + "x " * 100 + "\n" + "g h i j k l\n" * 3
    pieces = pieces_of(SourceFile("email/x.py", text, "email"))
    assert pieces and not any("x" in piece.text.split() for piece in pieces)


def test_a_planted_copy_is_caught_and_an_original_is_kept(fake_stdlib: Path) -> None:
    split = split_by_file(read_sources(fake_stdlib))
    own = [piece for file in split.evaluation for piece in pieces_of(file)]
    copied = pieces_of(split.train[0])[0]
    moved = "\n\n".join(f"    {line}" for line in copied.text.split("\n"))
    planted = Piece(moved, "email", "email/planted.py", n_headers=0)

    kept, removed = drop_near_duplicates([*own, planted], split.training_half)

    assert planted not in kept
    assert removed == 1
    assert kept == own


def test_a_piece_that_repeats_an_earlier_one_is_dropped() -> None:
    text = "".join(f"line_{index} = {index}\n" for index in range(10))
    first, half = Piece(text, "email", "a.py"), Piece(text[: len(text) // 2] + "other = 1\n", "email", "b.py")
    assert drop_near_duplicates([first, half], []) == ([first], 1)


def test_every_family_gets_its_share_from_many_files() -> None:
    pieces = [Piece(f"{source} {index}", "email", source) for source in "abcd" for index in range(50)]
    pieces += [Piece(f"only {index}", "xml", "e") for index in range(3)]
    chosen = stratify(pieces, ("email", "xml"), per_family=20)
    sources = [piece.source for piece in chosen]
    assert [sources.count(source) for source in "abcde"] == [5, 5, 5, 5, 3]
    assert len(set(chosen)) == len(chosen)
    assert chosen == stratify(iter(pieces), ("email", "xml"), per_family=20)
