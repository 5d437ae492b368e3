"""Recommendations from an artifact, without config, checkpoint or log.

The encoder runs from its module. It, JAX and this file are all that a query needs:
nothing of the training is imported.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from create_jax import named, topk
from create_jax.artifact import Artifact
from create_jax.errors import InputError, one_line
from create_jax.models.transformer import apply_encoder
from create_jax.search import Names, nearest

OURS = "create_jax.models."  # modules of encoders that are part of the package
MOST = 1000  # items of one answer
SMALL = (1, 8, 32)  # queries of a call are filled up to one of these,
FEW = 128  # come in parts of the largest of those, which warm_up compiles,
LARGE = 512  # more in parts of so many
SHORTEST = 8  # slots of a history; doubled up to the longest


class Explanation(NamedTuple):
    """How an item stands after a history of n items, and without each of them.

    score, rank: with all; rank 1 is the best of what may be recommended.
    history: [n] codes. scores, ranks: [n] without that one; NaN and 0 where none was
      left. A score that falls when an item is left out was raised by it.
    """

    score: float
    rank: int
    history: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray


class Slots(NamedTuple):
    """What `apply_encoder` reads of a batch. [B, T] both."""

    positions: jax.Array
    segments: jax.Array


def encode(encoder, parameters, table, items, lengths):
    """[B, D] states at the end of histories, as queries are posed in training.

    Args:
      parameters: `sequence`, and `token` [D] where [MASK] ends each history.
      items: [B, T] codes from the left, oldest first. lengths: [B], with a token below
        T.
    """
    places = jnp.arange(items.shape[1])
    x, token = table[items], parameters.get("token")
    if token is not None:
        x = jnp.where((places == lengths[:, None])[..., None], token, x)
        lengths = lengths + 1
    segments = (places < lengths[:, None]).astype(jnp.int32)
    slots = Slots(jnp.broadcast_to(places, items.shape), segments)
    ends = jnp.maximum(lengths - 1, 0)[:, None]
    return apply_encoder(encoder, parameters["sequence"], x, slots, read=ends)


def make_encoder(about: dict):
    """The Linen module of a manifest's `encoder`.

    Raises:
      InputError: its module cannot be imported.
    """
    try:
        return named.load(about["module"]).Encoder(**about["settings"])
    except Exception as error:  # somebody's module may raise anything
        reason = one_line(f"{type(error).__name__}: {error}", 120)
        raise InputError(
            f"the encoder {about['module']} cannot be made ({reason}); put its module "
            "on Python's path, or add --trust to run the exported program instead"
        ) from None


def encoder_program(about: dict):
    """(parameters, table [V, D], items [B, T], lengths [B]) -> [B, D]."""
    encoder = make_encoder(about)

    def run(parameters, table, items, lengths):
        with jax.default_matmul_precision("highest"):
            return encode(encoder, parameters, table, items, lengths)

    return run


class Recommender:
    """Answers queries by the model of an artifact. Codes are the artifact's.

    Args:
      trust: run the exported program of an encoder whose module is not here. Whoever
        wrote the file chose what that program does.
    """

    def __init__(self, artifact: Artifact, *, trust: bool = False):
        self.artifact = artifact
        self.manifest = artifact.manifest
        self.kind = self.manifest["query"]
        self.can_come = artifact.counts > 0
        self.can_come[0] = False
        self.longest = topk.longest_row(artifact.items)
        if self.kind == "encoder":
            self.encoder = self.manifest["encoder"]
            self.fixed = False  # slots of the exported program
            self.masked = "token" in artifact.parameters
            self._program = jax.jit(self._find_program(trust))
            inputs = artifact.items if artifact.inputs is None else artifact.inputs
            self._given = jax.device_put((artifact.parameters, inputs))

    def _find_program(self, trust: bool):
        ours = self.encoder["module"].startswith(OURS)
        if ours or not trust:
            try:
                return encoder_program(self.encoder)
            except InputError:
                if ours or self.artifact.program is not None:
                    raise
                raise InputError(
                    f"the encoder {self.encoder['module']} is not on Python's path and "
                    "the artifact has no exported program; bring its module, or export "
                    "again with the extra `export` installed"
                ) from None
        if self.artifact.program is None:
            return encoder_program(self.encoder)
        self.fixed = True
        try:
            from jax import export

            return export.deserialize(bytearray(self.artifact.program)).call
        except Exception as error:  # of many types; flatbuffers may be missing
            reason = one_line(f"{type(error).__name__}: {error}", 150)
            raise InputError(
                f"the exported program cannot be read ({reason}); install the extra "
                "`export`, or export again with the JAX of now"
            ) from None

    # --- vectors ----------------------------------------------------------------------

    @property
    def max_len(self) -> int:
        """The most items of a history that count, the newest."""
        if self.kind != "encoder":
            return np.iinfo(np.int32).max
        return self.encoder["max_len"] - self.masked

    def known(self, history: Sequence[int]) -> np.ndarray:
        """The items of a history that were trained, oldest first."""
        history = np.asarray(history, np.int64).reshape(-1)
        inside = history[(history > 0) & (history < len(self.can_come))]
        return inside[self.can_come[inside]].astype(np.int32)

    def falls_back(self, history: Sequence[int]) -> bool:
        """Whether the answer is the most popular items: nothing of the history was
        trained, or the method reads none."""
        return self.kind == "user" or not len(self.known(history))

    def vectors(self, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """[Q, D] query vectors of histories, codes with the oldest first; zeros where
        no item of a history was trained."""
        return self._vectors([self.known(history) for history in histories])

    def _vectors(self, histories: list[np.ndarray]) -> np.ndarray:
        found = np.zeros((len(histories), self.artifact.items.shape[1]), np.float32)
        if self.kind == "user":
            raise InputError(
                f"{self.manifest['method']} knows users, not histories; ask with the "
                "id of a user of its training data"
            )
        if self.kind == "constant":
            found[:] = 1.0
        elif self.kind == "sum":
            for row, history in zip(found, histories, strict=True):
                row[:] = self.artifact.items[np.unique(history)].sum(0)
        else:
            self._encode(histories, found)
        return found

    def _encode(self, histories, found) -> None:
        newest = [history[-self.max_len :] for history in histories]
        lengths = np.array([len(history) for history in newest], np.int32)
        asked = np.flatnonzero(lengths)
        part = LARGE if len(asked) > FEW else SMALL[-1]
        if part == LARGE:  # alike in length, together
            asked = asked[np.argsort(lengths[asked], kind="stable")]
        for start in range(0, len(asked), part):
            some = asked[start : start + part]
            slots = self.encoder["max_len"]
            if len(some) > SMALL[-1] and not self.fixed:
                slots = self._slots(int(lengths[some].max()))
            items = np.zeros((_padded(len(some)), slots), np.int32)
            for row, query in zip(items, some, strict=False):
                row[: lengths[query]] = newest[query]
            sizes = np.zeros(len(items), np.int32)
            sizes[: len(some)] = lengths[some]
            states = self._program(*self._given, items, sizes)
            found[some] = np.asarray(states)[: len(some)]

    def _slots(self, longest: int) -> int:
        """Slots of a batch whose longest history has so many items."""
        slots, wanted = SHORTEST, longest + self.masked
        while slots < wanted:
            slots *= 2
        return min(slots, self.encoder["max_len"])

    def warm_up(self) -> None:
        """Compiles the programs of few queries; later ones need not wait for it."""
        one = np.flatnonzero(self.can_come)[:1].astype(np.int32)
        for size in SMALL if self.kind == "encoder" and len(one) else ():
            self._vectors([one] * size)

    # --- lists ------------------------------------------------------------------------

    def recommend(
        self,
        histories: Sequence[Sequence[int]],
        k: int,
        *,
        exclude: Iterable[int] = (),
        allow: Iterable[int] | None = None,
        hide_history: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items after each history, best first.

        Where no item of a history was trained, the most popular by training rows.

        Args:
          exclude: codes that shall not come. allow: the only ones that may; None = all.
          hide_history: the items of a history do not come.

        Returns:
          items [Q, k] int32, 0 where fewer than k are left; scores [Q, k], -inf there.

        Raises:
          InputError: k is not from 1 to 1000; the lists leave no item.
        """
        rows = [self.known(history) for history in histories]
        hidden = rows if hide_history else None
        allowed = self.allowed(exclude, allow)
        if self.kind == "user":
            return self._popular(len(rows), k, hidden, allowed)
        return self._lists(self._vectors(rows), rows, k, hidden, allowed)

    def recommend_users(
        self,
        users: Sequence[int],
        k: int,
        *,
        seen: Sequence[Sequence[int]] | None = None,
        exclude: Iterable[int] = (),
        allow: Iterable[int] | None = None,
        hide_history: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same for known users, by their places in `artifact.users`; hidden are the
        items that they were trained with, and for each more that were `seen`."""
        known = self.artifact.users
        users = np.asarray(users, np.int64)
        rows = [known.seen[known.offsets[u] : known.offsets[u + 1]] for u in users]
        if seen is not None:
            more = [self.known(row) for row in seen]
            rows = [np.append(*pair) for pair in zip(rows, more, strict=True)]
        hidden = rows if hide_history else None
        allowed = self.allowed(exclude, allow)
        return self._lists(known.vectors[users], None, k, hidden, allowed)

    def allowed(self, exclude=(), allow=None) -> np.ndarray:
        """[V] bool, what may come: trained, in `allow`, not in `exclude`.

        Raises:
          InputError: nothing is left.
        """
        allowed = self.can_come
        if allow is not None:
            allowed = np.zeros_like(allowed)
            allowed[np.asarray(list(allow), np.int64)] = True
            allowed &= self.can_come
        exclude = np.asarray(list(exclude), np.int64)
        if len(exclude):
            allowed = allowed.copy()
            allowed[exclude] = False
        if not allowed.any():
            raise InputError(
                "the lists of allowed and excluded items leave none that the model was "
                "trained with; allow more, or exclude fewer"
            )
        return allowed

    def _lists(self, vectors, histories, k, hidden, allowed):
        check_k(k)
        items, scores = self._best(vectors, k, hidden, allowed)
        if histories is not None and self.kind != "constant":
            empty = np.array([not len(history) for history in histories], bool)
            if empty.any():  # nothing of theirs is hidden
                popular = self._popular(1, k, None, allowed)
                items[empty], scores[empty] = popular[0][0], popular[1][0]
        return items, scores

    def _best(self, vectors, k, hidden, allowed):
        table, n = self.artifact.items, len(vectors)
        items, scores = np.zeros((n, k), np.int32), np.zeros((n, k), np.float32)
        at_once = max(SMALL[-1], topk.SCORES // len(table))
        for start in range(0, n, at_once):
            some = slice(start, start + at_once)
            items[some], scores[some] = topk.best(
                vectors[some],
                table,
                k,
                hidden=None if hidden is None else hidden[some],
                allowed=allowed,
                longest=self.longest,
            )
        return items, scores

    def _popular(self, queries: int, k: int, hidden, allowed):
        check_k(k)
        ones = np.ones((queries, 1), np.float32)
        counts = self.artifact.counts[:, None].astype(np.float32)
        return topk.best(ones, counts, k, hidden=hidden, allowed=allowed)

    def similar(self, code: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k items [k] whose vectors have the highest cosine with that of an item,
        without itself, and the cosines [k]."""
        check_k(k)
        if self.kind == "constant":
            raise InputError(
                f"{self.manifest['method']} has no item vectors, so that no item is "
                "similar to another; ask a method that learns them"
            )
        if not self.can_come[code]:
            raise InputError(
                f"the item {self.artifact.ids[code]!r} was never trained, so that its "
                "vector says nothing; ask for another"
            )
        items, scores = topk.best(
            self._directions[code][None],
            self._directions,
            k,
            hidden=[np.array([code])],
            allowed=self.can_come,
            longest=1.0 + 1e-6,
        )
        return items[0], scores[0]

    @cached_property
    def _directions(self) -> np.ndarray:
        """[V, D] item vectors of length 1."""
        table = self.artifact.items
        lengths = np.linalg.norm(table, axis=1, keepdims=True)
        return table / np.maximum(lengths, np.finfo(np.float32).tiny)

    def explain(
        self, history: Sequence[int], item: int, *, hide_history: bool = True
    ) -> Explanation:
        """Leave one out: the score and rank of an item with a history, and without each
        of its items that the model reads. It is true of the model, whatever it is.

        The items of the history hold no ranks, also the one that is left out, if
        `hide_history`.
        """
        return self.explain_all(history, [item], hide_history=hide_history)[0]

    def left_out(self, known: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The n items of a known history that the model reads, and n + 1 histories: it,
        and without each of them."""
        if self.kind == "sum":  # an item that comes again counts once
            known = np.array(list(dict.fromkeys(known.tolist())), known.dtype)
        read = known[-self.max_len :]
        first = len(known) - len(read)
        without = [np.delete(known, first + place) for place in range(len(read))]
        return read, [known, *without]

    def explain_all(
        self,
        history: Sequence[int],
        items: Sequence[int],
        *,
        exclude: Iterable[int] = (),
        allow: Iterable[int] | None = None,
        hide_history: bool = True,
    ) -> list[Explanation]:
        """The same of several items, of one batch of n + 1 queries, ranked among what
        `exclude` and `allow` leave."""
        known = self.known(history)
        if self.falls_back(history):
            raise InputError(
                "no known history to explain by: the answer is the most popular items, "
                "or a known user's; ask with a history"
            )
        read, queries = self.left_out(known)
        vectors = self._vectors(queries)
        allowed = self.allowed(exclude, allow)
        if hide_history:
            allowed = allowed.copy()
            allowed[known] = False
        own = np.full((len(items), len(queries)), np.nan, np.float32)
        ranks = np.zeros((len(items), len(queries)), np.int64)
        for number, query in enumerate(queries):
            if not len(query) and self.kind != "constant":
                continue
            scores = self.artifact.items @ vectors[number]
            own[:, number] = scores[items]
            scores = scores[allowed]
            ranks[:, number] = [1 + (scores > s).sum() for s in own[:, number]]
        return [
            Explanation(float(s[0]), int(r[0]), read, s[1:], r[1:])
            for s, r in zip(own, ranks, strict=True)
        ]

    # --- names ------------------------------------------------------------------------

    @cached_property
    def _names(self) -> Names:
        return Names(self.artifact)

    def code(self, text: str) -> int:
        """The item of an id or title; a title in any letters, as `search` has them.

        Raises:
          InputError: there is none, with the nearest; or two have that title, with
            their ids.
        """
        ids, titles = self.artifact.ids, self.artifact.titles
        found = ids.code_of(text)
        if found is not None:
            return found
        named_so = (titles and titles.codes_of(text)) or self._names.named(text)
        if len(named_so) > 1:
            named_so = [code for code in named_so if self.can_come[code]] or named_so
        if len(named_so) > 1:
            several = ", ".join(repr(ids[code]) for code in named_so[:5])
            raise InputError(
                f"{text!r} is the title of {len(named_so)} items, {several}; name one "
                "by its id"
            )
        if named_so:
            return named_so[0]
        near = self._names.nearest(text, 3)
        found = "; ".join(repr((titles and titles[i]) or ids[i]) for i in near)
        raise InputError(
            f"no item has the id or title {one_line(text, 80)!r}"
            + (f"; nearest: {found}" if found else "; expected one of the model's")
        )

    def user(self, text: str) -> int:
        """The place of a known user.

        Raises:
          InputError: the method knows none, or not this one.
        """
        users = self.artifact.users
        if users is None:
            raise InputError(
                f"{self.manifest['method']} reads a history and knows no users; ask "
                "with a history, or on the terminal with --log=FILE and the user"
            )
        found = users.ids.code_of(text)
        if found is None:
            near = "; ".join(repr(users.ids[p]) for p in nearest(users.ids, text))
            raise InputError(
                f"no user {one_line(text, 80)!r} in the training data"
                + (f"; nearest: {near}" if near else "")
            )
        return found


def check_k(k) -> None:
    """Raises InputError for a k that no answer has."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MOST:
        raise InputError(f"k is {k!r}; expected a whole number from 1 to {MOST}")


def _padded(n: int) -> int:
    return next((size for size in (*SMALL, LARGE) if n <= size), LARGE)
