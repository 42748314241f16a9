"""Text as it comes is the text that all tokens make, whole characters at a time, and ends where it is told to."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from flashsvd.generation.text_stream import TextStream


def _bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def _pieces(stream: TextStream, data: bytes) -> list[str]:
    return [*(stream.add(byte) for byte in data), stream.finish()]


@given(st.binary(max_size=60) | st.text(max_size=20).map(str.encode))
def test_pieces_are_the_whole_text(data: bytes) -> None:
    stream = TextStream(_bytes)
    assert "".join(_pieces(stream, data)) == stream.text == _bytes(data)


@given(st.text(st.sampled_from("aé→🙂\n"), max_size=20))
def test_a_character_comes_with_its_last_byte(text: str) -> None:
    pieces = _pieces(TextStream(_bytes), text.encode())
    assert [piece for piece in pieces if piece] == list(text)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_nothing_of_a_stop_text_is_shown(text: str, stop: list[str]) -> None:
    stream = TextStream(_bytes, stop)
    shown = "".join(_pieces(stream, text.encode()))
    ends = [text.find(word) + len(word) for word in stop if word in text]
    if not ends:
        assert shown == text and not stream.stopped
        return
    seen = text[: min(ends)]
    assert stream.stopped and shown == stream.text
    assert shown == seen[: min(seen.find(word) for word in stop if word in seen)]


def test_what_a_tokenizer_makes_of_a_token_depends_on_the_one_before() -> None:
    """As SentencePiece, which drops the space before the first word."""
    words = ["▁the", "▁cat", "s", "▁sat"]

    def decode(ids: Sequence[int]) -> str:
        return "".join(words[index] for index in ids).replace("▁", " ").removeprefix(" ")

    stream = TextStream(decode)
    assert [stream.add(index) for index in range(4)] == ["the", " cat", "s", " sat"]


def test_bytes_that_are_no_text_do_not_hold_back_what_follows() -> None:
    stream = TextStream(_bytes)
    assert [stream.add(byte) for byte in b"a\xff\xffb"] == ["a", "", "\ufffd", "\ufffdb"]
    assert stream.add(0xE2) == "" and stream.finish() == "\ufffd"


def test_each_token_decodes_a_few_not_all() -> None:
    sizes: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        sizes.append(len(ids))
        return _bytes(ids)

    stream = TextStream(decode)
    for byte in b"x" * 500:
        stream.add(byte)
    assert max(sizes) <= 3
