"""Stop strings against plain string search over the whole text, however the text is cut."""

from hypothesis import example, given
from hypothesis import strategies as st

from octavo.text.stop import StopStrings

ALPHABET = "ab·é"
texts = st.text(ALPHABET, max_size=30)
stop_lists = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4)


def search(text: str, stops: list[str], include: bool, deaf: int = 0) -> tuple[str, str | None]:
    """The definition: the first end of any occurrence beyond `deaf` characters; the longest of those that end there."""
    for end in range(deaf + 1, len(text) + 1):
        here = [stop for stop in stops if text[:end].endswith(stop)]
        if here:
            longest = max(here, key=len)
            return (text[:end] if include else text[: end - len(longest)]), longest
    return text, None


def cut(text: str, points: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(point % (len(text) + 1) for point in points)})
    return [text[a:b] for a, b in zip(borders, borders[1:], strict=False)]


@given(texts, stop_lists, st.lists(st.integers(0, 30), max_size=8), st.booleans())
@example("aab", ["aab", "ab"], [1, 2], False)
@example("abab", ["bb", "aba"], [1, 2, 3], True)
def test_streamed_equals_search(text: str, stops: list[str], points: list[int], include: bool) -> None:
    matcher = StopStrings(stops, include)
    out = ""
    for piece in cut(text, points):
        out += matcher.push(piece)
        assert text.startswith(out)
        if matcher.matched is not None:
            break
    else:
        out += matcher.finish()
    assert (out, matcher.matched) == search(text, stops, include)


@given(texts, stop_lists, st.lists(st.integers(0, 30), max_size=8))
def test_holds_back_only_what_could_begin_a_stop_string(text: str, stops: list[str], points: list[int]) -> None:
    matcher = StopStrings(stops)
    seen = out = ""
    for piece in cut(text, points):
        seen += piece
        out += matcher.push(piece)
        if matcher.matched is not None:
            return
        ends = [seen[at:] for at in range(len(seen)) if any(s != seen[at:] and s.startswith(seen[at:]) for s in stops)]
        assert seen == out + max(ends, key=len, default="")


@given(texts, texts, stop_lists, st.booleans())
def test_nothing_ends_within_ignored_text(early: str, late: str, stops: list[str], include: bool) -> None:
    matcher = StopStrings(stops, include)
    out = matcher.push(early, ignore=True) + matcher.push(late)
    if matcher.matched is None:
        out += matcher.finish()
    assert (out, matcher.matched) == search(early + late, stops, include, deaf=len(early))


def test_empty_stop_strings_do_not_count() -> None:
    matcher = StopStrings(["", "x"])
    assert matcher.push("abc") == "abc"
    assert matcher.push("dxe") == "d"
    assert matcher.matched == "x"
