import pytest
from hypothesis import given
from hypothesis import strategies as st
from persona_collapse import matching


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("say [zlt] and [ZLT]", "[ZLT]", ["[zlt]", "[ZLT]"]),
        ("aaaa", "aa", ["aa", "aa"]),
        ("eine Straße", "STRASSE", ["Straße"]),
        ("ΟΔΟΣ, then ΟΔΟΣΑ", "οδος", ["ΟΔΟΣ", "ΟΔΟΣ"]),  # lower() makes a final sigma of one
        ("İİ zlt", "ZLT", ["zlt"]),  # lower() makes two characters of each İ
        ("xi\u0307y", "İ", ["i\u0307"]),
        ("cafe\u0301!", "CAFÉ", ["cafe\u0301"]),
        ("café", "cafe\u0301", ["café"]),
        ("ZLTé ZLTe", "zlte", ["ZLTe"]),  # an accent makes another letter
        ("ß", "s", []),
        ("", "zlt", []),
        ("zlt", "", []),
        ("🐙🐙🐙", "🐙🐙", ["🐙🐙"]),
    ],
)
def test_hits_are_whole_characters_of_the_text(text, wanted, found):
    assert [text[a:b] for a, b in matching.spans(text, wanted)] == found
    assert matching.holds(text, wanted) == bool(found)


#: No marks that join the character before them: `configuration.check` refuses markers with one in front.
STARTS = st.characters(exclude_categories=("Cs", "Mn", "Me", "Mc"))
MARKERS = st.tuples(STARTS, st.text(STARTS, min_size=1, max_size=6)).map("".join)


@given(before=st.text(STARTS, max_size=9), marker=MARKERS, after=st.text(STARTS, max_size=9))
def test_a_text_that_holds_the_marker_holds_it_in_any_case_and_form(before, marker, after):
    import unicodedata

    for form in ("NFC", "NFD"):
        for said in (marker, marker.casefold(), unicodedata.normalize(form, marker)):
            assert matching.holds(f"{before}\n{said}\n{after}", marker), (form, said)


@given(text=st.text(max_size=20), wanted=st.text(min_size=1, max_size=3))
def test_spans_lie_in_the_text_in_order_and_say_the_same(text, wanted):
    last = 0
    for first, end in matching.spans(text, wanted):
        assert last <= first < end <= len(text)
        assert matching.fold(text[first:end]) == matching.fold(wanted)
        last = end
