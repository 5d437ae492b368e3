"""Items found by what somebody types: an id, a title, a part of one, a misspelt one."""

import difflib
import re
import sys
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from create_jax.artifact import Artifact, Texts

HITS = 4000  # lines of the names that one search looks at
NEAR = 200  # of them for each beginning of a misspelt word
COMPARED = 400  # of them with a misspelt name, those with most of its beginnings
WORDS = 12  # of a misspelt name
ALIKE = 0.65  # of the letters, below which a name is not near
WORD = re.compile(r"\w+")
SPACES = r"[\pZ\t-\r\x1c-\x1f\x{85}]+"  # those of str.split


class Names:
    """The names of the items that a model was trained with, the most popular first.

    One text holds a line for each item, its title and its id in small letters without
    accents, so that a search is one for bytes.
    """

    def __init__(self, artifact: Artifact):
        self._artifact = artifact
        order = np.argsort(-artifact.counts, kind="stable")
        self._codes = order[(artifact.counts[order] > 0) & (order > 0)]
        tab, end, nothing = (pa.scalar(x, pa.large_string()) for x in ("\t", "\n", ""))

        def names(texts):
            return plain(as_arrow(texts).take(self._codes)) if texts else nothing

        titles, ids = names(artifact.titles), names(artifact.ids)
        self._by_title = np.zeros(0, np.int32)  # lines
        if artifact.titles:
            self._by_title = pc.sort_indices(titles).to_numpy().astype(np.int32)
        lines = pc.binary_join_element_wise(titles, ids, tab)
        lines = pc.binary_join_element_wise(lines, nothing, end)
        _, starts, text = lines.buffers()
        self._text = b"\n" + text.to_pybytes()
        self._starts = 1 + np.frombuffer(starts, np.int64, len(lines) + 1)

    def named(self, text: str) -> list[int]:
        """The item of an id, or else all items of a title, in any letters."""
        return self.named_all([text])[0]

    def named_all(self, texts: list[str]) -> list[list[int]]:
        """The same of each text."""
        ids = self._artifact.ids
        codes = [ids.code_of(text) for text in texts]
        return [
            self._titled(small.encode()) if code is None else [code]
            for code, small in zip(codes, plain_texts(texts), strict=True)
        ]

    def _titled(self, wanted: bytes) -> list[int]:
        lines = memoryview(self._by_title)
        if not wanted:
            return []
        first = bisect_left(lines, wanted, key=self._title)
        last = bisect_right(lines, wanted, first, key=self._title)
        return sorted(self._codes[lines[first:last]].tolist())

    def find(self, text: str, n: int) -> list[int]:
        """At most n items, best first: the id itself, an id or title in any letters,
        what begins with the text, what has all its words, else what is spelt alike. All
        for no text.

        Of equals the most popular comes first.
        """
        whole = plain_text(text)
        words = sorted(set(whole.split()), key=len, reverse=True)
        if not words:
            return self._codes[:n].tolist()
        own, found = self._artifact.ids.code_of(text), {}
        lines = self._places(words[0].encode(), HITS)
        if len(lines) == HITS:  # there are more, perhaps the title or id itself
            for name in (f"\n{whole}\t", f"\t{whole}\n"):
                lines += self._places(name.encode(), HITS)
        for line in lines:
            name = self._line(line)
            if all(word in name for word in words):
                is_own = self._codes[line] == own
                found[line] = -1 if is_own else _rank(name, whole, words)
        best = sorted(found, key=lambda line: (found[line], line))[:n]
        return self._codes[best].tolist() if best else self.nearest(text, n)

    def nearest(self, text: str, n: int) -> list[int]:
        """At most n items with a title or an id that is spelt like a text."""
        whole = plain_text(text)[:100]
        lines = Counter()
        for word in whole.split()[:8]:
            for part in {
                word[:4],
                word[1:5],
                word[-4:],
                f" {word[:2]}",
                f"\n{word[:2]}",
            }:
                if len(part) > 2:
                    lines.update(self._places(part.encode(), NEAR))
        lines = sorted(lines, key=lambda line: (-lines[line], line))[:COMPARED]
        scored = [(_alike(whole, self._line(line)), -line) for line in lines]
        best = sorted(filter(lambda one: one[0] >= ALIKE, scored), reverse=True)[:n]
        return [int(self._codes[-line]) for _, line in best]

    def _title(self, line: int) -> bytes:
        start = int(self._starts[line])
        return self._text[start : self._text.index(b"\t", start)]

    def _line(self, line: int) -> str:
        return self._text[self._starts[line] : self._starts[line + 1] - 1].decode()

    def _places(self, part: bytes, most: int) -> list[int]:
        """The first lines that have some bytes."""
        found, at = [], self._text.find(part)
        while at >= 0 and len(found) < most:
            line = int(
                np.searchsorted(self._starts, at + part.startswith(b"\n"), "right")
            )
            found.append(line - 1)
            at = self._text.find(part, int(self._starts[line]) - 1)
        return found


def nearest(texts: Texts, text: str) -> list[int]:
    """Places of the three texts that share most with one, in any case: by the share of
    its groups of three letters that they have, plus difflib's ratio."""
    wanted = text.lower()[:100].encode(errors="replace").decode()
    width = min(3, len(wanted))
    groups = {wanted[i : i + width] for i in range(len(wanted) - width + 1) if width}
    small, hits = pc.utf8_lower(as_arrow(texts)), np.zeros(len(texts), np.int32)
    for group in groups:
        hits += np.asarray(pc.match_substring(small, group))
    some = np.flatnonzero(hits)
    some = some[np.argsort(-hits[some], kind="stable")][:100]
    match = difflib.SequenceMatcher(b=wanted)

    def alike(place):
        match.set_seq1(texts[place].lower())
        return hits[place] / len(groups) + match.ratio()

    return sorted(map(int, some), key=alike, reverse=True)[:3]


def as_arrow(texts: Texts) -> pa.LargeStringArray:
    """The same bytes, or where they are no UTF-8 the texts that `Texts` makes of
    them."""
    parts = (texts.offsets, np.int64), (texts.data, np.uint8)
    buffers = (pa.py_buffer(np.ascontiguousarray(x, kind)) for x, kind in parts)
    found = pa.LargeStringArray.from_buffers(len(texts), *buffers)
    try:
        found.validate(full=True)
    except pa.ArrowInvalid:
        return pa.array(list(texts), pa.large_string())
    return found


def plain(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Each in one line and small letters, without accents and repeated spaces. Arrow
    does not hold the interpreter's lock: others answer while a model is loaded."""
    apart = pc.utf8_normalize(texts, "NFKD")
    small = pc.utf8_lower(pc.replace_substring_regex(apart, accents(), ""))
    for letter, folded in (("\u00df", "ss"), ("\u03c2", "\u03c3")):  # sharp and last s
        small = pc.replace_substring(small, letter, folded)
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(small, SPACES, " "))


@cache
def accents() -> str:
    """The marks that stand above or below a letter, as a regular expression. Vowels of
    Indian scripts are marks too (Unicode's M), and stay."""
    above = [chr(i) for i in range(sys.maxunicode) if unicodedata.combining(chr(i))]
    return f"[{''.join(above)}]+"


def plain_text(text: str) -> str:
    """`plain` of one text."""
    return plain_texts([text])[0]


def plain_texts(texts: list[str]) -> list[str]:
    whole = [text.encode(errors="replace").decode() for text in texts]
    return plain(pa.array(whole, pa.large_string())).to_pylist()


def _rank(name: str, whole: str, words: list[str]) -> int:
    """0 is best."""
    title, item = name.split("\t")
    if whole in (title, item):
        return 0
    if title.startswith(whole) or item.startswith(whole):
        return 1
    begins = all(f" {word}" in f" {title}" for word in words)
    return 2 if begins else 3


def _alike(whole: str, name: str) -> float:
    """The share of the letters of a text whose words stand in a name, by difflib's
    ratio of each with the nearest word of the name."""
    near, letters = 0.0, 0
    there = set(WORD.findall(name)) | {name.split("\t")[1]}
    for word in WORD.findall(whole)[:WORDS]:
        match = difflib.SequenceMatcher(b=word, autojunk=False)
        best = 0.0
        for other in there:
            match.set_seq1(other[:100])
            if match.real_quick_ratio() > best and match.quick_ratio() > best:
                best = max(best, match.ratio())
        near, letters = near + best * len(word), letters + len(word)
    return near / max(letters, 1)
