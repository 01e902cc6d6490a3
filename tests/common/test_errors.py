from hgsl.common.errors import InputError, nearest, unknown


def test_nearest_ignores_case_and_returns_none_for_distant_names() -> None:
    assert nearest("proxyanchor", ["ProxyAnchorLoss", "TripletMarginLoss"]) == "ProxyAnchorLoss"
    assert nearest("zzz", ["alpha", "beta"]) is None


def test_unknown_is_one_line_with_a_way_out() -> None:
    error = unknown("pooling", "qqq", ["avg", "max"])
    assert isinstance(error, InputError)
    assert isinstance(error, ValueError)
    assert str(error) == "unknown pooling 'qqq': use one of: avg, max"
