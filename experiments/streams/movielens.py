"""MovieLens as a stream: who rates which film how, in the order of time; users and films nobody has seen keep coming.

A rating is one of ten classes, half a star to five, so that a model also says how sure it is. Half stars were allowed
from 2003-05-16 on: four of ten ratings then are of classes that had never occurred.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from evergrad.errors import ConfigError
from evergrad.metrics import WindowedAUC, absolute_error, log_loss, squared_error
from experiments.data import find
from experiments.streams.subject import Array, Examples, Measure, Subject, mean_of, root_of, sides_of

FOLDER = "movielens-latest-small-2016"
GENRES = (
    "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir",
    "Horror", "IMAX", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
STARS = np.arange(1, 11) / 2
LIKED = 4.0
FIRST = 20_000
NEW_USER = 20  # ratings; each user has given as many or more, most of them in one sitting
Ints = npt.NDArray[np.int64]


def load_movielens(data: Path) -> Subject:
    """The subject, out of ratings.csv.gz and movies.csv.gz.

    Inputs are int32 [n, 2 + genres]: user, film, and 0 or 1 for each genre; labels int64 [n], the rating's class.
    Users and films are numbered as they come, so that a number tells nothing of what is to come.

    Raises:
        ConfigError: a file is missing, or not of its format.
    """
    examples = read_ratings(data)
    users, films = (np.asarray(examples.x[:, column], dtype=np.int64) for column in (0, 1))
    stream = slice(FIRST, None)
    user_rating, film_rating = occurrence(users)[stream], occurrence(films)[stream]
    half_stars = max(0, int(np.flatnonzero(examples.y % 2 == 0)[0]) - FIRST)
    tables = int(users.max()) + 1, int(films.max()) + 1
    return Subject(
        name="movielens",
        first=examples[:FIRST],
        stream=examples[stream],
        make_model=lambda: Recommender(*tables),
        loss=cross_entropy,
        score=log_loss,
        measures={
            "log loss": Measure(mean_of(log_loss)),
            "RMSE": Measure(root_of(lambda outputs, labels: squared_error(stars_of(outputs), STARS[labels]))),
            "MAE": Measure(mean_of(lambda outputs, labels: absolute_error(stars_of(outputs), STARS[labels]))),
            "AUC of 4 stars": Measure(auc_of_liked, higher_is_better=True),
        },
        groups={
            **sides_of(half_stars, len(user_rating), "whole stars", "half stars"),
            f"a user's first {NEW_USER}": user_rating < NEW_USER,
            "users known better": user_rating >= NEW_USER,
            "films never rated": film_rating == 0,
        },
        marks=[(half_stars, "half stars")],
        first_epochs=4,
        retrain_every=20_000,
        retrain_epochs=4,
        half_life=10_000,
        window=2000,
    )


def read_ratings(data: Path) -> Examples:
    """All ratings, oldest first. Raises as `load_movielens`."""
    path = find(data, f"{FOLDER}/ratings.csv.gz")
    genres = _genres(find(data, f"{FOLDER}/movies.csv.gz"))
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            table = np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2)
        user, film, stars, time_s = table[np.argsort(table[:, 3], kind="stable")].T
        flags = np.array([genres[number] for number in film.astype(np.int64).tolist()], dtype=np.int32)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise ConfigError("data", f"{path} is not userId,movieId,rating,timestamp of known films: {error}") from error
    classes = np.rint(2 * stars).astype(np.int64) - 1
    if classes.min() < 0 or classes.max() >= len(STARS):
        raise ConfigError("data", f"{path} has ratings from {stars.min()} to {stars.max()}, not from 0.5 to 5")
    return Examples(np.column_stack([numbered(user), numbered(film), flags]).astype(np.int32), classes, time_s)


def _genres(path: Path) -> dict[int, list[int]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {int(row["movieId"]): [int(each in row["genres"].split("|")) for each in GENRES] for row in rows}
    except (OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError("data", f"{path} is not movieId,title,genres: {error}") from error


def numbered(names: Array) -> Ints:
    """Each name's number, counted in the order of first occurrence."""
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return place[inverse]


def occurrence(names: Array) -> Ints:
    """How often each name has come before."""
    order = np.argsort(names, kind="stable")
    _, first, counts = np.unique(names[order], return_index=True, return_counts=True)
    before = np.empty(len(names), dtype=np.int64)
    before[order] = np.arange(len(names)) - np.repeat(first, counts)
    return before


def stars_of(outputs: Array) -> Array:
    """The expected rating: logits [n, 10] to stars [n]."""
    return np.asarray(_probabilities(outputs) @ STARS)


def auc_of_liked(outputs: Array, labels: Array) -> float:
    """How well the probability of four stars or more tells those that were rated so; NaN where all or none were."""
    found = WindowedAUC(max(1, len(labels)))
    found.add(_probabilities(outputs)[:, STARS >= LIKED].sum(axis=1), STARS[labels] >= LIKED)
    return found.value


def _probabilities(outputs: Array) -> Array:
    odds = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


class Recommender(nn.Module):
    """Embeddings of user and film and the film's genres, joined by a network of two layers.

    Embeddings begin at 0: of whom nothing is known, nothing is said.
    """

    def __init__(self, users: int, films: int, *, width: int = 16, hidden: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        self.user, self.film = nn.Embedding(users, width), nn.Embedding(films, width)
        nn.init.zeros_(self.user.weight)
        nn.init.zeros_(self.film.weight)
        self.mlp = nn.Sequential(
            nn.Linear(2 * width + len(GENRES), hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, len(STARS))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 2 + genres] to logits [n, 10]."""
        parts = self.user(x[:, 0]), self.film(x[:, 1]), x[:, 2:].to(self.user.weight.dtype)
        logits: torch.Tensor = self.mlp(torch.cat(parts, dim=1))
        return logits
