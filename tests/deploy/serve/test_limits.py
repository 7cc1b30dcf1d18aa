from __future__ import annotations

import pytest

from segdistill.deploy.serve.limits import TOKEN, Limits, is_loopback, token_for
from segdistill.types import UserError

GOOD = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_token(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_token(host):
    assert is_loopback(host)
    assert token_for(host, None) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "example.org", "localhost.example.org", "127.1"])
def test_any_other_host_needs_one(host, monkeypatch):
    assert not is_loopback(host)
    with pytest.raises(UserError, match="other machines: give --token") as error:
        token_for(host, None)
    assert "\n" not in str(error.value)
    assert token_for(host, GOOD) == GOOD
    monkeypatch.setenv(TOKEN, GOOD)
    assert token_for(host, None) == GOOD


@pytest.mark.parametrize("token", ["", "short", "with a space in it.", "größergrößergrößer", "line\nbreak........."])
def test_a_token_that_could_be_guessed_or_not_sent_is_refused(token, monkeypatch):
    with pytest.raises(UserError, match="at least 16 ASCII characters") as error:
        token_for("0.0.0.0", token)
    assert "\n" not in str(error.value)
    assert not token or token not in str(error.value)
    monkeypatch.setenv(TOKEN, token)
    with pytest.raises(UserError, match="at least 16"):
        token_for("127.0.0.1", None)


@pytest.mark.parametrize(
    "change",
    [
        {"max_bytes": 0},
        {"max_pixels": -1},
        {"max_seconds": 0.0},
        {"max_seconds": float("nan")},
        {"max_waiting": -1},
    ],
)
def test_limits_leave_room_for_a_request(change):
    with pytest.raises(UserError, match="must be above 0"):
        Limits(**change)
    assert Limits(max_waiting=0).max_waiting == 0
