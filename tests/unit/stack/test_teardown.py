"""What a teardown finds: mounts whose path holds white space."""

from __future__ import annotations

import pytest

from stack.teardown import _unescaped


@pytest.mark.parametrize(
    ("written", "path"),
    [
        (r"/a\040b/secrets", "/a b/secrets"),
        (r"/tab\011here", "/tab\there"),
        ("/plain", "/plain"),
        (r"/a\134b", r"/a\b"),
    ],
)
def test_a_path_is_read_as_the_kernel_writes_it(written: str, path: str) -> None:
    assert _unescaped(written) == path
