"""What commands say to a mistake."""

from collections.abc import Callable

import pytest


def refused(main: Callable[..., None], capsys: pytest.CaptureFixture, *args: str) -> str:
    """What a wrong command prints: at most three lines, exit code 2."""
    with pytest.raises(SystemExit) as exit_:
        main(args)
    assert exit_.value.code == 2
    text = capsys.readouterr().err.strip()
    assert text.startswith("error: ") and len(text.splitlines()) <= 3, text
    assert "Traceback" not in text
    return text
