from pathlib import Path

import pytest

from hgsl.common.paths import is_inside, public_uri, relative_to_root


@pytest.mark.parametrize("path", ["a.jpg", "a/b.jpg", "./a.jpg", "a..b/c.jpg", "..a"])
def test_inside(path: str) -> None:
    assert is_inside(path)


@pytest.mark.parametrize("path", ["", "/", "/a.jpg", "..", "../a.jpg", "a/../b.jpg", "a/..", "a\0.jpg"])
def test_not_inside(path: str) -> None:
    assert not is_inside(path)


@pytest.mark.parametrize("name", ["monkey", "design", "passage", "author", "keyword", "tokenizer", "sigma", "max-keys"])
def test_a_parameter_is_public_unless_a_whole_word_of_its_name_grants_access(name: str) -> None:
    for address in (
        f"https://host/a.jpg?size=9&{name}=2",
        f"https://host/a.jpg?{name}=2#top",
        "https://host/a.jpg?#",
        "index.db#sign",
        "http://host#key",
    ):
        assert public_uri(address) == address


@pytest.mark.parametrize(
    "name",
    [
        *("key", "sig", "apiKey", "api_key", "APIkey", "apikey", "access-token", "accessToken", "AWSAccessKeyId"),
        *("Key-Pair-Id", "client_secret", "authkey", "oauth2token", "X-Amz-Date", "x-goog-meta", "Expires"),
        *("user[pwd]", "Policy", "%6Bey", "Signature", "sign", "auth", "credentials"),
    ],
)
def test_parameters_that_grant_access_are_removed(name: str) -> None:
    assert public_uri(f"https://me:word@host/a.jpg?{name}=f00&size=9") == "https://host/a.jpg?size=9"
    assert public_uri(f"https://host/a.jpg#{name}=f00") == "https://host/a.jpg"


def test_relative_to_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert relative_to_root(f"{tmp_path}/a/b.jpg ", tmp_path) == "a/b.jpg"
    assert relative_to_root("a\\b.jpg", tmp_path) == "a/b.jpg"
    (tmp_path / "a\\b.jpg").touch()
    assert relative_to_root("a\\b.jpg", tmp_path) == "a\\b.jpg"  # a file of that name comes first
    assert relative_to_root("/elsewhere/b.jpg", tmp_path) == "/elsewhere/b.jpg"
    assert relative_to_root(f"{tmp_path}2/b.jpg", tmp_path) == f"{tmp_path}2/b.jpg"
    monkeypatch.chdir(tmp_path.parent)
    assert relative_to_root(f"{tmp_path}/b.jpg", Path(tmp_path.name)) == "b.jpg"
