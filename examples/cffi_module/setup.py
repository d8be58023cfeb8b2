"""Declare the CFFI module, which pyproject.toml cannot."""

from setuptools import setup

setup(cffi_modules=["build_loop.py:builder"])
