"""The data that scenarios ship with."""

import csv
from collections import Counter

from warehouse.assets import asset_dir


def test_the_sentences_are_balanced_and_all_different():
    path = asset_dir("scenarios") / "sentiment.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"s{n:03d}" for n in range(400)]
    assert len({row["sentence"].casefold() for row in rows}) == 400
    assert set(Counter((row["topic"], row["sentiment"]) for row in rows).values()) == {25}
    assert {row["sentiment"] for row in rows} == {"positive", "negative"}
    assert len({row["topic"] for row in rows}) == 8
    words = [len(row["sentence"].split()) for row in rows]
    assert (min(words), max(words)) == (4, 25)
    # Neither length nor punctuation tells what a sentence feels like.
    for sentiment in ("positive", "negative"):
        mine = [row["sentence"] for row in rows if row["sentiment"] == sentiment]
        assert 11 < sum(len(text.split()) for text in mine) / 200 < 13
        assert sum("!" in text for text in mine) <= 10
