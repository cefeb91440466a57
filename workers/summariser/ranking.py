"""Which sentences stand for the others: those that much of the rest has its words in common with.

    words in common ─> a graph of sentences ─> centrality ─> a number for each sentence

This is PageRank over the similarity of sentences, the method of LexRank and TextRank, by networkx:
a well-kept pure Python wheel that needs nothing else. Katz centrality over weights that add up to
one for each sentence is PageRank (and, unlike `networkx.pagerank`, needs no scipy), where `beta`
says how much a sentence counts by itself. Libraries that offer the whole (sumy, summa, pytextrank)
bring 70 to 650 MB, most compare every two sentences, and need data or wheels for each language; the
words here are those of the search, which are found in any language.

The same sentences always get the same numbers: nothing depends on the order of a set.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice
from typing import Final

import networkx

from eventlog.search.terms import postings

LEXEMES_MAX: Final = 60
"""Lexemes of a sentence that are compared."""
COMMON_SHARE: Final = 0.3
"""A word that more of the sentences have says nothing about any of them..."""
COMMON_MIN: Final = 4
"""...unless it is in no more sentences than this."""
SIMILARITY_MIN: Final = 0.05
"""Sentences with less in common than this have nothing to do with each other."""
NEIGHBOURS_MAX: Final = 8
"""Most similar sentences that a sentence is joined with: bounds the graph."""
DAMPING: Final = 0.85
"""How much of a sentence's standing it hands on, as in PageRank."""
ITERATIONS_MAX: Final = 500
"""Far more than needed: what is left to settle shrinks by `DAMPING` with each."""

Lexemes = dict[str, int]
"""The words of a sentence, and how often each is in it."""


def lexemes_of(text: str) -> Lexemes:
    """The first words of a sentence as search knows them, in their order."""
    found = islice(postings(text).items(), LEXEMES_MAX)
    return {lexeme: len(places) for lexeme, places in found}


def overlap(some: Lexemes, others: Lexemes) -> float:
    """How much of the shorter of two sentences is in the other: 0 to 1."""
    least = min(len(some), len(others))
    return len(some.keys() & others.keys()) / least if least else 0.0


def telling(wanted: Lexemes, sentences: Sequence[Lexemes]) -> Lexemes:
    """Those of the wanted words that tell sentences apart: few of these have them."""
    most = max(2, COMMON_SHARE * len(sentences) / 2)
    holders = Counter(lexeme for each in sentences for lexeme in each)
    return {lexeme: times for lexeme, times in wanted.items() if 0 < holders[lexeme] <= most}


def rank(sentences: Sequence[Lexemes], priors: Sequence[float]) -> list[float]:
    """How central each sentence is, as a share of all: more than 0, adding up to about 1.

    `priors`: how much each counts by itself, more than 0. Takes time in proportion to the number of
    sentences times the number of those that have a rarer word in common; keep to some hundreds.
    """
    if not sentences:
        return []
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(len(sentences)))
    for place, similar in enumerate(_neighbours(sentences)):
        total = sum(similar.values())
        graph.add_weighted_edges_from(
            (place, other, each / total) for other, each in similar.items()
        )
    everything = sum(priors)
    standing = networkx.katz_centrality(
        graph,
        alpha=DAMPING,
        beta={place: (1 - DAMPING) * each / everything for place, each in enumerate(priors)},
        max_iter=ITERATIONS_MAX,
        normalized=False,
        weight="weight",
        backend="networkx",
    )
    return [standing[place] for place in range(len(sentences))]


def _neighbours(sentences: Sequence[Lexemes]) -> list[dict[int, float]]:
    """For each sentence the most similar others, by the cosine of their rarer words."""
    vectors = _vectors(sentences)
    having: defaultdict[str, list[int]] = defaultdict(list)
    for place, vector in enumerate(vectors):
        for lexeme in vector:
            having[lexeme].append(place)
    result = []
    for place, vector in enumerate(vectors):
        similar: defaultdict[int, float] = defaultdict(float)
        for lexeme, weight in vector.items():
            for other in having[lexeme]:
                similar[other] += weight * vectors[other][lexeme]
        similar.pop(place, None)
        alike = [each for each in similar.items() if each[1] >= SIMILARITY_MIN]
        best = sorted(alike, key=lambda each: (-each[1], each[0]))
        result.append(dict(best[:NEIGHBOURS_MAX]))
    return result


def _vectors(sentences: Sequence[Lexemes]) -> list[dict[str, float]]:
    """The weight of each rarer word in each sentence, of length 1."""
    count = len(sentences)
    holders = Counter(lexeme for each in sentences for lexeme in each)
    most = max(COMMON_MIN, COMMON_SHARE * count)
    rarity = {
        lexeme: math.log(count / held)
        for lexeme, held in holders.items()
        if held <= most and held < count
    }
    vectors = []
    for each in sentences:
        weights = {
            lexeme: times * rarity[lexeme] for lexeme, times in each.items() if lexeme in rarity
        }
        length = math.sqrt(sum(weight * weight for weight in weights.values()))
        vectors.append({lexeme: weight / length for lexeme, weight in weights.items() if length})
    return vectors
