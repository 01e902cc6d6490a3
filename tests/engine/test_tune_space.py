"""The grammar of ``--search`` and the settings that a search space stands for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgsl.common.errors import InputError
from hgsl.config import Config
from hgsl.engine.tune.space import Choices, Range, as_text, parse_space, with_settings

NUMBERS = st.floats(1e-6, 1e6, allow_nan=False)


def one(argument: str) -> Range | Choices:
    (dimension,) = parse_space([argument], Config()).values()
    return dimension


@given(ends=st.lists(NUMBERS, min_size=2, max_size=2, unique=True), log=st.booleans(), text=st.sampled_from(["r", "e"]))
def test_a_range_of_numbers_is_read_back_exactly(ends: list[float], log: bool, text: str) -> None:
    low, high = sorted(ends)
    written = [repr(value) if text == "r" else f"{value:.17e}" for value in (low, high)]
    expected = Range(low, high, log=log)
    assert one(f"loss.alpha={'log:' if log else ''}{written[0]}..{written[1]}") == expected


@given(low=st.integers(1, 1000), length=st.integers(1, 1000), step=st.integers(1, 1000))
def test_a_setting_that_is_a_whole_number_gets_a_range_of_them(low: int, length: int, step: int) -> None:
    argument = f"train.batch_size={low}..{low + length}"
    assert one(argument) == Range(low, low + length, integer=True)
    if step <= length:
        assert one(f"{argument}/{step}") == Range(low, low + length, step=step, integer=True)
    else:
        with pytest.raises(InputError, match="the step must be above 0 and at most the length"):
            one(f"{argument}/{step}")


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1000, 1000),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.from_regex(r"[a-z_]{2,12}", fullmatch=True),
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=3),
)


@given(values=st.lists(VALUES, min_size=2, max_size=5, unique_by=as_text))
def test_values_are_read_back_by_their_texts(values: list[Any]) -> None:
    dimension = one(f"loss.top_k={','.join(map(as_text, values))}")
    assert isinstance(dimension, Choices)
    assert dimension.examples() == values
    assert list(map(type, dimension.examples())) == list(map(type, values))
    assert all(as_text(value) == text for text, value in dimension.values.items())


@given(text=st.text(max_size=30))
def test_any_text_is_a_dimension_or_an_error_that_names_it(text: str) -> None:
    try:
        parse_space([f"loss.alpha={text}"], Config())
    except InputError as error:
        assert str(error).startswith("--search ")  # noqa: PT017


def test_the_forms_of_the_documentation() -> None:
    space = parse_space(
        [
            *("loss.alpha=log:0.1..1.6", "loss.top_k=1,5,10,null", "optim.lr=1e-4,1e-3", "train.batch_size=16..64/16"),
            *("data.crop_scale=[0.2,1.0],[0.5,1.0]", "loss.options.margin=0.1..0.5", "optim.clip=1..5"),
        ],
        Config(),
    )
    assert list(space.values()) == [
        Range(0.1, 1.6, log=True),
        Choices({"1": 1, "5": 5, "10": 10, "null": None}),
        Choices({"0.0001": 1e-4, "0.001": 1e-3}),
        Range(16, 64, step=16, integer=True),
        Choices({"[0.2, 1.0]": [0.2, 1.0], "[0.5, 1.0]": [0.5, 1.0]}),
        Range(0.1, 0.5),
        Range(1, 5),
    ]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("loss.alpha", "expected NAME=LOW..HIGH, NAME=log:LOW..HIGH"),
        ("loss.alpha=", "expected NAME=LOW..HIGH, NAME=log:LOW..HIGH"),
        ("loss.alpah=0.1..1", "there is no such setting"),
        ("loss.alpha=1..1", "expected a number, then a larger one"),
        ("loss.alpha=2..1", "expected a number, then a larger one"),
        ("loss.alpha=log:0..1", "a logarithmic range begins above 0"),
        ("loss.alpha=log:0.1..1/0.1", "leave out log: or the step"),
        ("loss.alpha=log:1,2", "expected two numbers with .. between them"),
        ("loss.alpha=low..high", "expected two numbers with .. between them"),
        ("loss.hard_set=1..2", "this setting is no number: list its values"),
        ("train.batch_size=1.5..8", "give whole numbers"),
        ("loss.top_k=5", "expected at least two values, all different"),
        ("loss.top_k=5,5", "expected at least two values, all different"),
        ("loss.top_k=[5,6", "expected values separated by commas"),
        ("data.val_fold=0..3", "this setting decides what is compared"),
        ("data.options.seed=1,2", "this setting decides what is compared"),
        ("eval.ks=[1],[2]", "this setting decides what is compared"),
        ("run.seed=1..9", "this setting decides what is compared"),
        ("model.lora=1,2", "this is a group of settings: search one of them, such as model.lora.rank"),
    ],
)
def test_another_form_is_refused(argument: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_space([argument], Config())
    assert message in str(error.value)
    assert argument.split("=")[0] in str(error.value)


def test_a_setting_is_searched_once() -> None:
    with pytest.raises(InputError, match=r"--search names loss.alpha twice"):
        parse_space(["loss.alpha=0.1..1", "loss.alpha=2..3"], Config())


def test_settings_of_one_section_are_changed_together_and_the_others_stay() -> None:
    config = Config()
    changed = with_settings(config, {"loss.hard_set": "negatives", "loss.top_k": 5, "optim.lr": 0.5})
    assert (changed.loss.hard_set, changed.loss.top_k, changed.optim.lr) == ("negatives", 5, 0.5)
    assert changed.train == config.train
    assert config == Config(), "the settings of the other trials"
    with pytest.raises(InputError, match=r"loss.hard_set 'negatives' needs loss.top_k"):
        with_settings(config, {"loss.hard_set": "negatives"})


def test_entries_of_a_dictionary_are_changed_beside_each_other() -> None:
    config = with_settings(Config(), {"loss.name": "ProxyAnchorLoss", "loss.options": {"alpha": 32}})
    changed = with_settings(config, {"loss.options.margin": 0.2, "loss.options.scale": 3})
    assert changed.loss.options == {"alpha": 32, "margin": 0.2, "scale": 3}


def test_settings_of_a_group_within_a_section_are_changed_beside_each_other() -> None:
    config = with_settings(Config(), {"model.freeze": "batch_norm", "model.lora.alpha": 8.0})
    changed = with_settings(config, {"model.lora.rank": 4, "data.augment.grayscale": 0.1})
    assert (changed.model.freeze, changed.model.lora.rank, changed.model.lora.alpha) == ("batch_norm", 4, 8.0)
    assert changed.data.augment.grayscale == 0.1
    with pytest.raises(InputError, match=r"model.lora.rank cannot be negative"):
        with_settings(config, {"model.lora.rank": -1})
