"""The streams' loaders: what a file says is what a model gets, in the order of time, and nothing of the future."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiments.streams.bikeshare import FIRST, load_bikeshare, make_mlp, read_hours
from experiments.streams.digits import deranged, load_permuted, load_rotating, turning
from experiments.streams.movielens import (
    FOLDER,
    GENRES,
    Recommender,
    auc_of_liked,
    load_movielens,
    numbered,
    occurrence,
    read_ratings,
    stars_of,
)  # fmt: skip
from experiments.streams.subject import Examples, mean_of, root_of, sides_of

from evergrad.errors import ConfigError
from evergrad.metrics import squared_error

RATINGS = [(7, 30, 4.0, 300), (7, 10, 3.0, 100), (2, 30, 0.5, 200), (7, 20, 5.0, 100)]
FILMS = '30,"Up, and away (1999)",Comedy|IMAX\n10,One (1990),(no genres listed)\n20,Two (1991),Drama\n'
HOUR = (
    "instant,dteday,season,yr,mnth,hr,holiday,weekday,workingday,weathersit,temp,atemp,hum,windspeed,"
    "casual,registered,cnt"
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))
    return path


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    rows = "".join(f"{user},{film},{stars},{time}\n" for user, film, stars, time in RATINGS)
    write(tmp_path / FOLDER / "ratings.csv.gz", "userId,movieId,rating,timestamp\n" + rows)
    write(tmp_path / FOLDER / "movies.csv.gz", "movieId,title,genres\n" + FILMS)
    return tmp_path


def hours(folder: Path, count: int = 3) -> Path:
    rows = [f"{n},2011-12-31,1,0,12,{23 - n % 24},0,6,0,1,0.24,0.2879,0.81,0.5,3,{n},{3 + n}" for n in range(count)]
    write(folder / "bikeshare" / "hour.csv.gz", "\n".join([HOUR, *rows]) + "\n")
    return folder


def test_ratings_come_in_the_order_of_time_and_as_classes(ratings: Path) -> None:
    found = read_ratings(ratings)
    assert found.time_s is not None
    assert found.time_s.tolist() == [100, 100, 200, 300]
    assert found.y.tolist() == [5, 9, 0, 7]
    assert found.x.dtype == np.int32
    assert found.x[:, :2].tolist() == [[0, 0], [0, 1], [1, 2], [0, 2]]
    genres = [[GENRES[which] for which in np.flatnonzero(row)] for row in found.x[:, 2:]]
    assert genres == [[], ["Drama"], ["Comedy", "IMAX"], ["Comedy", "IMAX"]]


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("ratings.csv.gz", "userId,movieId,rating,timestamp\n1,10,five,3\n", "ratings.csv.gz is not userId"),
        ("ratings.csv.gz", "userId,movieId,rating,timestamp\n1,11,5,3\n", "of known films: 11"),
        ("ratings.csv.gz", "userId,movieId,rating,timestamp\n1,10,7,3\n", "ratings from 7.0 to 7.0"),
        ("movies.csv.gz", "movieId,title\n10,One\n", "movies.csv.gz is not movieId,title,genres"),
    ],
    ids=["no number", "an unknown film", "too many stars", "no genres"],
)
def test_a_wrong_file_of_ratings_is_named(ratings: Path, file: str, text: str, told: str) -> None:
    write(ratings / FOLDER / file, text)
    with pytest.raises(ConfigError, match=told.replace(".", r"\.")):
        read_ratings(ratings)


def test_names_are_numbered_and_counted_as_they_come() -> None:
    names = np.array([9, 4, 9, 7, 4, 9])
    assert numbered(names).tolist() == [0, 1, 0, 2, 1, 0]
    assert occurrence(names).tolist() == [0, 0, 1, 0, 1, 2]


def test_logits_become_stars_and_the_chance_of_four() -> None:
    logits = np.full((2, 10), -1000.0)
    logits[0, 1], logits[1, [7, 9]] = 0.0, 0.0
    assert stars_of(logits).tolist() == [1.0, 4.5]
    assert auc_of_liked(logits, np.array([2, 8])) == 1.0
    assert auc_of_liked(logits, np.array([8, 2])) == 0.0
    assert np.isnan(auc_of_liked(logits, np.array([8, 9])))


def test_a_recommender_knows_nothing_of_whom_it_has_not_seen() -> None:
    model = Recommender(5, 6).eval()
    x = torch.zeros(2, 2 + len(GENRES), dtype=torch.int32)
    x[1, :2] = torch.tensor([4, 5])
    logits = model(x)
    assert logits.shape == (2, 10)
    assert torch.equal(logits[0], logits[1])


def test_hours_come_in_order_and_neither_casual_nor_registered_is_fed(tmp_path: Path) -> None:
    found = read_hours(hours(tmp_path))
    assert np.expm1(found.y[:, 0]).tolist() == pytest.approx([5.0, 4.0, 3.0])
    assert found.time_s is not None
    assert np.diff(found.time_s).tolist() == [3600.0, 3600.0]
    assert found.x.shape == (3, 55)
    assert found.x[:, 21:24].tolist() == np.eye(3).tolist()
    assert found.x[:, -4:].tolist() == pytest.approx(np.array([[0.24, 0.2879, 0.81, 0.5]] * 3))
    assert make_mlp()(torch.from_numpy(found.x)).shape == found.y.shape


@pytest.mark.parametrize("text", ["instant,hr\n1,2\n", f"{HOUR}\n1,2011-13-01,1,0,1,0,0,6,0,1,0,0,0,0,3,13,16\n"])
def test_a_wrong_table_of_hours_is_named(tmp_path: Path, text: str) -> None:
    write(tmp_path / "bikeshare" / "hour.csv.gz", text)
    with pytest.raises(ConfigError, match="is not the hourly table"):
        read_hours(tmp_path)


@pytest.mark.parametrize(
    ("load", "told"),
    [
        (load_movielens, "grouplens.org"),
        (load_bikeshare, "archive.ics.uci.edu"),
        (load_rotating, "ossci-datasets"),
        (load_permuted, "ossci-datasets"),
    ],
)
def test_what_is_missing_is_named_and_where_to_get_it(load: Callable[[Path], Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        load(tmp_path)


def test_digits_turn_a_little_more_each_time() -> None:
    pixels = np.zeros((400, 1, 28, 28), np.uint8)
    pixels[:, :, 4:10, 13:15] = 200  # a bar above the centre
    found = turning(pixels, 180.0)
    centres = [np.average(np.arange(28), weights=image[0].sum(axis=1, dtype=float)) for image in found[::100]]
    assert found.dtype == np.uint8
    assert centres == sorted(centres)
    assert centres[-1] > 19


def test_a_derangement_moves_everything() -> None:
    found = deranged(10, 1)
    assert sorted(found) == list(range(10))
    assert not np.any(found == np.arange(10))


def test_measures_are_means_and_roots_of_scores() -> None:
    outputs, labels = np.array([1.0, 5.0]), np.array([1.0, 1.0])
    assert mean_of(squared_error)(outputs, labels) == 8.0
    assert root_of(squared_error)(outputs, labels) == np.sqrt(8.0)
    assert np.isnan(mean_of(squared_error)(outputs[:0], labels[:0]))


def test_a_part_of_a_subject_has_its_part_of_everything(tmp_path: Path) -> None:
    whole = load_bikeshare(_two_years(tmp_path))
    where = whole.marks[0][0]
    part = whole.part(where - 5, where + 10, window=4)
    assert len(part.stream) == 15
    assert part.marks == [(5, "2012")]
    assert part.groups["2012"].tolist() == [False] * 5 + [True] * 10
    assert part.window == 4
    assert whole.part(0, where).marks == []


def _two_years(folder: Path) -> Path:
    rows = [
        f"{n},{np.datetime64('2011-10-01') + n // 24},1,0,12,{n % 24},0,6,0,1,0.24,0.2879,0.81,0.5,3,{n},{n}"
        for n in range(FIRST + 100)
    ]
    write(folder / "bikeshare" / "hour.csv.gz", "\n".join([HOUR, *rows]) + "\n")
    return folder


def test_sides_are_what_is_before_and_the_rest() -> None:
    sides = sides_of(1, 3, "a", "b")
    assert sides["a"].tolist() == [True, False, False]
    assert sides["b"].tolist() == [False, True, True]
    assert len(Examples(np.zeros(3), np.zeros(3))[:2]) == 2
