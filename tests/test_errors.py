"""vmamba.errors: how the tools report what is the user's to fix."""

import pytest

from vmamba.errors import UserError, near_names, require, tool


def test_message_is_one_line():
    assert str(UserError("a\n  b\tc ")) == "a b c"


def test_near_names():
    assert near_names("epoch", ["epochs", "seed"]) == "; near names: epochs"
    assert near_names("zzz", ["epochs", "seed"]) == ""


def test_missing_dependency_names_the_extra():
    with pytest.raises(UserError, match=r"no_such_module is not installed; .* pip install 'vmamba\[train\]'"):
        require("no_such_module")


@pytest.mark.parametrize(("raised", "code", "line"), [
    (None, 0, ""), (UserError("bad"), 2, "error: bad\n"), (KeyboardInterrupt(), 130, "interrupted\n")])
def test_exit_codes(raised, code, line, capsys):
    @tool
    def main():
        if raised:
            raise raised
        return 0

    assert main() == code
    assert capsys.readouterr().err == line


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        tool(lambda: 1 // 0)()
