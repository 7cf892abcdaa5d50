"""Builds the compiled module if it can; everything else about the package is in setup.cfg.

FOOPROXY_EXTENSION in the environment says whether it must: ``require`` fails without a compiler, ``no`` does not try.
"""

import os

from setuptools import Extension, setup

WISH = os.environ.get("FOOPROXY_EXTENSION", "")
if WISH not in ("", "require", "no"):
    raise SystemExit(f"FOOPROXY_EXTENSION={WISH} is not known: use require or no, or leave it out")

CORE = Extension(
    "fooproxy._core",
    ["fooproxy/_core.c", "fooproxy/foo/counting.c", "fooproxy/net/pump.c"],
    depends=["fooproxy/foo/counting.h", "fooproxy/net/pump.h"],
    # Or another library of the process that has a function called `count` too would be called.
    extra_compile_args=["-fvisibility=hidden"],
    optional=WISH != "require",
)

setup(ext_modules=[] if WISH == "no" else [CORE])
