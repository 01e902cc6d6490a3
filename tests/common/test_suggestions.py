import pytest

from hgsl.common.suggestions import edit_distance, nearest, similar


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("proxyanchor", ["TripletMarginLoss", "ProxyAnchorLoss"], "ProxyAnchorLoss"),  # its beginning
        ("TripletMiner", ["MultiSimilarityMiner", "TripletMarginMiner"], "TripletMarginMiner"),  # a word is missing
        ("per_class", ["random", "m_per_class"], "m_per_class"),
        ("cvs", ["cub", "csv", "cars"], "csv"),  # two letters in another order
        ("--train.epoch", ["--train.mode", "--train.epochs"], "--train.epochs"),
        ("RESNET_50", ["resnet18", "resnet50"], "resnet50"),
        # Words that share letters with unrelated names, or only their group or their last word.
        ("nope", ["sop", "cub", "cars", "csv", "folder"], None),
        ("NopeLoss", ["PNPLoss", "TripletMarginLoss"], None),
        ("data.nope", ["data.name", "data.cache", "data.mode"], None),
        ("zzz", ["alpha", "beta"], None),
        ("x", ["k", "y"], None),
        ("", ["k", "alpha"], None),
    ],
)
def test_a_suggestion_differs_in_few_letters_or_in_whole_words(
    word: str, known: list[str], expected: str | None
) -> None:
    assert nearest(word, known) == expected


def test_the_most_similar_name_is_the_first() -> None:
    assert similar("layer1.conv", ["layer1.conv22", "layer1.conv1", "fc"]) == ["layer1.conv1", "layer1.conv22"]


def test_the_edit_distance_counts_a_swap_of_neighbors_once() -> None:
    assert [edit_distance(*pair) for pair in (("ab", "ba"), ("kitten", "sitting"), ("", "abc"))] == [1, 3, 3]
