from hgsl.common.errors import InputError, unknown


def test_unknown_is_one_line_with_a_way_out() -> None:
    error = unknown("pooling", "qqq", ["avg", "max"])
    assert isinstance(error, InputError)
    assert isinstance(error, ValueError)
    assert str(error) == "unknown pooling 'qqq': use one of: avg, max"
