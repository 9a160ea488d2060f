"""docs/messages.md shows what is really printed, for every class of error."""

from statten_deploy import errors
from tests.untrusted.messages import DOCUMENT, EXAMPLES, document


def test_the_page_is_what_happens() -> None:
    text = document()
    assert text.count("\n| `") == len(EXAMPLES)
    for name in set(errors.__all__) - {"StattenError"}:
        assert f"| `{name}` |" in text
    assert DOCUMENT.read_text(encoding="utf-8") == text
