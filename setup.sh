#!/usr/bin/env bash
# Makes .venv with everything in requirements.txt, at the versions in constraints.txt: 9 GB, in
# 1 minute on a fast network. A second call does nothing; an interrupted or outdated environment is
# made again.
#
#   ./setup.sh && source .venv/bin/activate
#   PYTHON=/opt/python3.12/bin/python3 ./setup.sh     # with another Python, 3.11 or 3.12
set -euo pipefail
case ${1-} in
  "") ;;
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit ;;
  *)
    echo "error: $1: no such argument; another Python is given in front, as" \
      "PYTHON=python3.12 ./setup.sh; ./setup.sh --help" >&2
    exit 2
    ;;
esac
if [[ ${PYTHON:-} == */* ]]; then PYTHON=$(realpath -s -- "$PYTHON"); fi  # before the next line
cd "$(dirname "$0")"

NEEDED_GB=10  # 9 installed
UV_VERSION=0.13.9  # installs in a third of pip's time, and made constraints.txt
WHY_NOT_NEWER="ColossalAI 0.5.0 uses torch.compile when it is imported,
       which torch 2.5.1 lacks on Python 3.13"

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

[[ $(uname -sm) == "Linux x86_64" ]] ||
  fail "Linux on x86-64 is needed (NVIDIA DALI); this is $(uname -sm)"
unset PYTHONPATH PYTHONHOME  # of an active environment: they would reach into the new one
export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1

# --- is there anything to do? ---

stamp=.venv/set-up-complete
wanted=$(cat requirements.txt constraints.txt | sha256sum | cut -c1-64)\ $UV_VERSION\ $PWD
is_complete() {
  [[ -f $stamp && $(cat "$stamp") == "$wanted" ]] && .venv/bin/python -c '' 2>/dev/null || return 1
  [[ -z ${PYTHON:-} || $(base_of "$PYTHON" 2>/dev/null) == "$(base_of .venv/bin/python)" ]]
}
# The Python that an environment was made from: .venv itself may be about to be replaced.
base_of() { "$1" -c 'import os, sys; print(os.path.realpath(sys._base_executable))'; }
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

exec 9> .venv.lock
flock -n 9 || { echo "another set-up is running here; waiting for it"; flock 9; }
if is_complete; then exit 0; fi

# --- a Python that fits, and uv ---

# Prints the first of $PYTHON, python3.12, python3.11, python3, python that is 3.11 or 3.12. If none
# is, prints "3.12", which uv fetches.
find_python() {
  local candidate version found=()
  if [[ -n ${PYTHON:-} ]]; then
    [[ -x $(command -v -- "$PYTHON") ]] || fail "PYTHON=$PYTHON: there is no such program"
    "$PYTHON" -c '' || fail "PYTHON=$PYTHON: it does not run as a Python"
  fi
  for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3 python; do
    version=$(version_of "$candidate" 2>/dev/null) || continue
    if [[ $version == 3.1[12] ]]; then base_of "$candidate"; return; fi
    if [[ $candidate == "${PYTHON:-}" ]]; then
      fail "PYTHON=$PYTHON is Python $version; 3.11 or 3.12 is needed ($WHY_NOT_NEWER)"
    fi
    found+=("$candidate is $version")
  done
  echo "no Python 3.11 or 3.12 here (${found[*]:-none at all}): uv fetches 3.12" >&2
  echo 3.12
}

# Installs uv into .venv.uv if it is not there: by pip of any Python, else by uv's own installer.
get_uv() {
  local python
  if [[ $(.venv.uv/bin/uv --version 2>/dev/null) =~ ^uv\ "$UV_VERSION"( |$) ]]; then return; fi
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
      fail "uv $UV_VERSION, which installs the packages, could not be fetched by pip or curl.
       Is there a network? Otherwise install one of the two (apt install python3-pip curl)"
  fi
}

# Fails if the disk of a folder, which may not be there yet, has no room for it.
check_disk() {
  local folder=$1 advice=$2 free
  while [[ ! -d $folder ]]; do folder=$(dirname "$folder"); done
  free=$(df --output=avail -BG "$folder" | tail -n 1 | tr -dc 0-9)
  (( free >= NEEDED_GB )) || fail "$1: $free GB free, $NEEDED_GB GB are needed. $advice"
}

python=$(find_python)
get_uv
uv=.venv.uv/bin/uv
check_disk "$PWD" "Free some, remove an old .venv, or clone to another disk"
cache=$("$uv" cache dir)
if [[ ! -d $cache ]]; then  # else it usually holds all of it
  check_disk "$cache" "uv keeps its downloads there: UV_CACHE_DIR=/another/folder ./setup.sh"
fi

# --- the environment: an old one comes back if the new one cannot be made ---

restore_old() { if [[ ! -f $stamp && -e .venv.old ]]; then rm -rf .venv; mv .venv.old .venv; fi; }
restore_old
rm -rf .venv.old
if [[ -f $stamp ]]; then mv .venv .venv.old; trap restore_old EXIT; fi
rm -rf .venv
if ! "$uv" venv --quiet --python "$python" .venv; then
  [[ $python == 3.12 ]] || fail "uv could not make .venv with $python: the line above says why"
  fail "no Python 3.11 or 3.12 could be fetched. Install one (conda create -n py312 python=3.12, or
       apt install python3.12, python3.11), or give its path: PYTHON=/path/to/python3.12 ./setup.sh"
fi
echo "setting up .venv with $(.venv/bin/python --version): 9 GB, 1 minute on a fast network"
quiet=--quiet
if [[ -t 2 ]]; then quiet=; fi  # uv shows its progress on a terminal only
"$uv" pip install $quiet --python .venv --constraints constraints.txt --editable .
printf '%s' "$wanted" > "$stamp.tmp" && mv "$stamp.tmp" "$stamp"
rm -rf .venv.old
echo "set up: source .venv/bin/activate"
