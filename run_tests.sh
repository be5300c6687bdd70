#!/usr/bin/env bash
# Set-up and the whole test suite; no GPU needed. Arguments go to pytest:
# ./run_tests.sh tests/generation/test_tokenization.py
set -euo pipefail
cd "$(dirname "$0")"
./setup.sh
unset PYTHON  # it chose the Python of .venv, which runs all that follows
exec .venv/bin/python -m pytest "$@"
