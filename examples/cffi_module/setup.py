"""What pyproject.toml cannot say: the module that CFFI makes."""

from setuptools import setup

setup(cffi_modules=["build_loop.py:builder"])
