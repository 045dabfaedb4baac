import pytest

from remora.executor.front.refusal import Refuse
from remora.executor.front.tokens import Tokens, is_loopback, parse_tokens

TOKENS = parse_tokens("# team\nalpha acme/ann\n\nbeta\n")


def test_a_token_stands_for_its_principal():
    assert TOKENS.principal("Bearer alpha") == "acme/ann"
    assert TOKENS.principal("bearer beta") == "default/user"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer alph", "Basic alpha", "Bearer é"])
def test_anything_else_is_refused(header):
    with pytest.raises(Refuse) as refusal:
        TOKENS.principal(header)
    assert (refusal.value.kind, refusal.value.status) == ("auth", 401)


def test_without_tokens_the_caller_is_local():
    assert Tokens().principal(None) == "local/user"


@pytest.mark.parametrize("text", ["", "# only", "a b/c d", "secret no-slash", "a\na"])
def test_a_bad_token_file_is_refused_without_telling_the_token(text):
    with pytest.raises(ValueError) as error:
        parse_tokens(text)
    assert "secret" not in str(error.value)


def test_only_this_machine_is_loopback():
    assert all(map(is_loopback, ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", ""]))
