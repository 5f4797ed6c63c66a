"""Words as nltk's `word_tokenize` cuts them, which SCAN's vocabularies and the authors' checkpoints were made with.

The rules are those of `NLTKWordTokenizer` (nltk 3.10, Apache-2.0): clitics apart ("man", "'s"), hyphens kept,
punctuation a word. nltk first cuts a text into sentences with a trained model (Punkt); in lower-cased text hardly
anything of that model but its list of abbreviations takes part, so the list stands here and nothing is downloaded.
"""

import re
from collections.abc import Iterator

_STARTING_QUOTES = [
    (re.compile("([«“\u2018„]|[`]+)"), r" \1 "),
    (re.compile(r"^\""), r"``"),
    (re.compile(r"(``)"), r" \1 "),
    (re.compile(r"([ \(\[{<])(\"|\'{2})"), r"\1 `` "),
    (re.compile(r"(?i)(?<!\w)(\')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)"), r"\1 "),
]
_PUNCTUATION = [
    (re.compile(r'([^\.])(\.)([\]\)}>"\'»”\u2019 ]*+)\s*$'), r"\1 \2 \3 "),
    (re.compile(r"([:,])([^\d])"), r" \1 \2"),
    (re.compile(r"([:,])$"), r" \1 "),
    (re.compile(r"\.{2,}"), r" \g<0> "),
    (re.compile(r"[;@#$%&]"), r" \g<0> "),
    (re.compile("[\u2012-\u2015]"), r" \g<0> "),
    (re.compile(r'([^\.])(\.)([\]\)}>"\']*)\s*$'), r"\1 \2\3 "),
    (re.compile(r"[?!]"), r" \g<0> "),
    (re.compile(r"([^'])' "), r"\1 ' "),
    (re.compile(r"[*]"), r" \g<0> "),
    (re.compile(r"[\]\[\(\)\{\}\<\>]"), r" \g<0> "),
    (re.compile(r"--"), r" -- "),
]
_ENDING_QUOTES = [
    (re.compile("([»”\u2019])"), r" \1 "),
    (re.compile(r"''"), " '' "),
    (re.compile(r'"'), " '' "),
    (re.compile(r"\s+"), " "),
    (re.compile(r"([^' ])('[sS]|'[mM]|'[dD]|') "), r"\1 \2 "),
    (re.compile(r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) "), r"\1 \2 "),
]
_CONTRACTIONS = [
    (re.compile(rule, re.IGNORECASE), r" \1 \2 ")
    for rule in (
        r"\b(can)(not)\b", r"\b(d)('ye)\b", r"\b(gim)(me)\b", r"\b(gon)(na)\b", r"\b(got)(ta)\b", r"\b(lem)(me)\b",
        r"\b(more)('n)\b", r"\b(wan)(na)(?=\s)", r" ('t)(is)\b", r" ('t)(was)\b",
    )
]  # fmt: skip

_APART = r"""[)";}\]*:@'({\[\u2018\u2019“”«»?!]"""
_SENTENCE_END = re.compile(
    r"""[.?!](?:["')\]}\u2018\u2019“”«»]+(?=\s|--|$)\s*|\s+(?=\S)|"""
    rf"""(?=(?![?!]){_APART}|[?!](?!\s+\S|{_APART})))"""
)
_ABBREVIATIONS = """
    a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c c.i.t c.o.m.b c.v calif chg cie co col
    colo conn corp cos ct d d.c d.h d.w dec dr e e.f e.h e.l e.m f f.g f.j feb fla fri ft g g.d g.f g.k ga gen h h.c h.f
    h.m i.m.s ill inc j.b j.c j.j j.k j.p j.r jan jr k kan ky l l.a l.f l.p lt ltd m m.b.a m.d.c m.j maj messrs mg mich
    minn mr mrs ms n n.c n.d n.h n.j n.m n.v n.y nev nov oct ok okla ore p p.a.m p.m pa ph.d prof r r.a r.h r.i r.j r.k
    r.t rep reps s s.a s.a.y s.c s.g s.p.a s.s sen sep sept sr st sw t t.j tenn tues u.k u.n u.s u.s.a u.s.s.r v va vs
    vt w w.c w.r w.va w.w wash wed wis yr
"""
"""What nltk's model of English takes for an abbreviation; whole words between white space."""
_IS_ABBREVIATION = frozenset(_ABBREVIATIONS.split()).__contains__
_NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*")


def _ends_sentence(before: str, after: str, apart: bool) -> bool:
    """Whether the full stop between `before` and `after`, its first word, ends a sentence; `apart`: by a space."""
    word = before.rsplit(None, 1)[-1] if before.strip() else ""
    word = re.split(r"""[(")\];:}{*@'\[?!\u2018\u2019“”«»`&#]""", word)[-1]
    if apart and re.match(r"\S*[?!]\S", after):
        return True  # as nltk has it, whatever stands before: it looks for any end in the two words
    if word.endswith(".") or _IS_ABBREVIATION(word) or _IS_ABBREVIATION(word.rsplit("-", 1)[-1]):
        return False  # an ellipsis ends no sentence either
    numbering = _NUMBER.fullmatch(word) or (len(word) == 1 and word.isalpha())  # "5. floor", "b. smith"
    goes_on = after[0].islower() or (after[0] in ";:,.!?" and not after.startswith(".."))
    return not (numbering and goes_on)


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for match in _SENTENCE_END.finditer(text):
        before, after = text[start : match.start()], text[match.start() + 1 :]
        if match[0][0] != "." or _ends_sentence(before, after.lstrip(), after[:1].isspace()):
            yield text[start : match.end()].rstrip()
            start = match.end()
    yield text[start:].rstrip()


def treebank_words(text: str) -> list[str]:
    """The lower-cased words of `text` as the released code cuts them: nltk's `word_tokenize(text.lower())`.

    "The man's T-shirt can't say: hi!" gives the, man, 's, t-shirt, ca, n't, say, :, hi, !.
    """
    words: list[str] = []
    for sentence in _sentences(text.lower()):
        spaced = sentence
        for rule, replacement in (*_STARTING_QUOTES, *_PUNCTUATION):
            spaced = rule.sub(replacement, spaced)
        spaced = f" {spaced} "
        for rule, replacement in (*_ENDING_QUOTES, *_CONTRACTIONS):
            spaced = rule.sub(replacement, spaced)
        words += spaced.split()
    return words
