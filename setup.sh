#!/usr/bin/env bash
# Makes .venv with everything in requirements.txt, at the versions in constraints.txt (1 minute,
# 9 GB). A second call does nothing; an interrupted or outdated environment is made again.
#
#   ./setup.sh && source .venv/bin/activate
#   PYTHON=/opt/python3.12/bin/python3 ./setup.sh     # with another Python, 3.11 or 3.12
set -euo pipefail
cd "$(dirname "$0")"

NEEDED_GB=10  # 9 installed
UV_VERSION=0.13.9  # it installs in a third of pip's time, and constraints.txt was made by it
WHY_NOT_NEWER="ColossalAI 0.5.0 uses torch.compile when it is imported, \
which torch 2.5.1 lacks on Python 3.13"

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# --- is there anything to do? ---

stamp=.venv/set-up-complete
wanted=$(cat pyproject.toml requirements.txt constraints.txt setup.sh | sha256sum | cut -c1-64)
wanted+=" $PWD"
is_complete() {
  [[ -f $stamp && $(cat "$stamp") == "$wanted" ]] && .venv/bin/python -c '' 2>/dev/null || return 1
  [[ -z ${PYTHON:-} || $(base_of "$PYTHON" 2>/dev/null) == "$(base_of .venv/bin/python)" ]]
}
# The Python that an environment was made from: .venv itself may be about to be replaced.
base_of() {
  "$1" -c 'import os, sys
print(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))'
}

exec 9> .venv.lock
flock -n 9 || { echo "another set-up is running here; waiting for it"; flock 9; }
if is_complete; then exit 0; fi

# --- a Python that fits, and uv ---

# Prints the first of $PYTHON, or of python3.12, python3.11, python3, python, that is 3.11 or 3.12;
# "3.12" for uv to fetch one if none is.
find_python() {
  local candidate version found=()
  if [[ -n ${PYTHON:-} ]]; then
    [[ -x $(command -v -- "$PYTHON") ]] || fail "PYTHON=$PYTHON: there is no such program"
    "$PYTHON" -c '' || fail "PYTHON=$PYTHON: it does not run as a Python"
  fi
  for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3 python; do
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
      continue
    if [[ $version == 3.1[12] ]]; then base_of "$candidate"; return; fi
    if [[ $candidate == "${PYTHON:-}" ]]; then
      fail "PYTHON=$PYTHON is Python $version; 3.11 or 3.12 is needed ($WHY_NOT_NEWER)"
    fi
    found+=("$candidate is $version")
  done
  echo "no Python 3.11 or 3.12 here (${found[*]:-none at all}): uv fetches 3.12" >&2
  echo 3.12
}

# Prints the path of uv, which is installed beside .venv if it is not there: by pip of any Python,
# else by uv's installer.
find_uv() {
  local python uv
  for uv in uv .venv.uv/bin/uv; do
    if [[ $("$uv" --version 2>/dev/null) == "uv $UV_VERSION"* ]]; then command -v "$uv"; return; fi
  done
  rm -rf .venv.uv
  for python in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3 python; do
    if "$python" -m pip --version > /dev/null 2>&1; then
      "$python" -m pip install --quiet --target .venv.uv "uv==$UV_VERSION" && break
    elif "$python" -c 'import ensurepip, venv' > /dev/null 2>&1; then
      "$python" -m venv .venv.uv && .venv.uv/bin/pip install --quiet "uv==$UV_VERSION" && break
    fi
  done
  if [[ ! -x .venv.uv/bin/uv ]]; then
    curl -LsSf "https://astral.sh/uv/$UV_VERSION/install.sh" |
      UV_UNMANAGED_INSTALL=$PWD/.venv.uv/bin sh >&2 ||
      fail "uv $UV_VERSION, which installs the packages, could not be fetched by pip or by curl. \
Is there a network?
       Install Python 3.12 with pip (apt install python3.12 python3-pip), \
or uv: https://docs.astral.sh/uv"
  fi
  echo .venv.uv/bin/uv
}

# Fails if the disk of a folder, which may not be there yet, is too full; what the folder holds
# counts as free.
check_disk() {
  local folder=$1 disk=$1 free
  while [[ ! -d $disk ]]; do disk=$(dirname "$disk"); done
  free=$(df --output=avail -BG "$disk" | tail -n 1 | tr -dc 0-9)
  if [[ -d $folder ]]; then (( free += $(du -s -BG "$folder" | cut -f1 | tr -dc 0-9) )); fi
  (( free >= NEEDED_GB )) || fail "$folder: $free GB free, $NEEDED_GB GB are needed. $2"
}

[[ $(uname -s) == Linux ]] || fail "Linux is needed (NVIDIA DALI); this is $(uname -s)"
unset PYTHONPATH PYTHONHOME  # of an active environment: they would reach into the new one
export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
python=$(find_python)
uv=$(find_uv)
check_disk "$PWD/.venv" "Free some, or clone to another disk"
check_disk "$("$uv" cache dir)" \
  "uv keeps its downloads there: UV_CACHE_DIR=/another/folder ./setup.sh"

# --- the environment ---

rm -rf .venv
"$uv" venv --quiet --python "$python" .venv ||
  fail "no Python 3.11 or 3.12 could be fetched. \
Install one (apt install python3.12; conda create -n py312 python=3.12),
       or give its path: PYTHON=/path/to/python3.12 ./setup.sh"
echo "setting up .venv with $(.venv/bin/python --version): 1 minute, 9 GB"
"$uv" pip install --quiet --python .venv --constraints constraints.txt --editable .
printf '%s' "$wanted" > "$stamp.tmp" && mv "$stamp.tmp" "$stamp"
echo "set up: source .venv/bin/activate"
